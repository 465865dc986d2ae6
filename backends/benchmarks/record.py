"""What recording costs: the loss with and without `gspo_torch.record`, in turns, by processor time, files written and all.

    python backends/benchmarks/record.py [--rounds 200]

It is set against a whole step: a linear head over a vocabulary, log-probabilities, loss, backward pass and optimiser, the cheapest
policy that still is one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import gspo_torch as gspo
from gspo_torch.observers import OBSERVERS

BATCH, LENGTH, HIDDEN, VOCABULARY = 16, 512, 128, 4096


def main() -> None:
    """Prints medians, and the median of the paired differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        step, loss = _training(), _loss_alone()
        step()
        plain, recorded = [], []
        with gspo.record(Path(folder)) as trace:
            observers = OBSERVERS[:]
            for _ in range(rounds):
                OBSERVERS.clear()
                plain.append(_timed(loss))
                OBSERVERS[:] = observers
                recorded.append(_timed(lambda: (loss(), trace.advance())))
        whole = statistics.median(_timed(step) for _ in range(5))
        size = sum(path.stat().st_size for path in Path(folder).rglob("0*.safetensors")) / rounds
    extra = statistics.median(b - a for a, b in zip(plain, recorded, strict=True))
    print(f"{BATCH} responses of {LENGTH} tokens, {os.cpu_count()} cores, torch {torch.__version__}, {rounds} rounds")
    print(f"loss and its gradient {1e3 * statistics.median(plain):.2f} ms; the step around it {1e3 * whole:.0f} ms")
    print(f"recording adds {1e3 * extra:.2f} ms, {100 * extra / whole:.2f} % of the step; {size / 1e3:.0f} kB a step")


def _training() -> Callable[[], None]:
    head = torch.nn.Linear(HIDDEN, VOCABULARY)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.01)
    hidden = torch.randn(BATCH, LENGTH, HIDDEN)
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH))
    old = gspo.token_logps(head(hidden), tokens).detach()
    mask, advantages = torch.rand(BATCH, LENGTH) < 0.8, torch.randn(BATCH)

    def step() -> None:
        gspo.gspo_loss(gspo.token_logps(head(hidden), tokens), old, advantages, mask).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _loss_alone() -> Callable[[], None]:
    logp = torch.randn(BATCH, LENGTH, requires_grad=True)
    mask, advantages = torch.rand(BATCH, LENGTH) < 0.8, torch.randn(BATCH)
    return lambda: gspo.gspo_loss(logp, logp.detach(), advantages, mask).loss.backward()


def _timed(call: Callable[[], None]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


if __name__ == "__main__":
    main()
