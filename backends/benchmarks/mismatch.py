"""Real mismatch: a small transformer, trained on the pages of docs/, scored by an engine and by trainers that round differently.

    python backends/benchmarks/mismatch.py --out docs/benchmarks

The engine samples responses one token at a time from cached keys and values, weights and activations in
bfloat16. The trainers score whole responses: in bfloat16 as the engine, and in float32. Each pair becomes a
trace without any change of the policy, `gspo noise` estimates it, and its prediction is held against what the
paper's range clips. About two minutes on one core; the seed determines it up to the kernels of the machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from gspo_conformance.audit import read_trace
from gspo_conformance.noise.analysis import analyse
from gspo_core import Objective

PAGES = sorted((Path(__file__).resolve().parents[2] / "docs").rglob("*.md"))
VOCABULARY, WIDTH, LAYERS, HEADS, PROMPT, LONGEST = 128, 128, 3, 4, 32, 512


class Block(nn.Module):
    """Causal attention with rotary positions, and a multilayer perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor, at: int, cache: Tensor | None) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(self.before_attention(x)).chunk(3, -1)
        )
        q, k = rotated(q, at), rotated(k, at)
        if cache is not None:
            end = at + k.shape[2]
            cache[0, :, :, at:end], cache[1, :, :, at:end] = k, v
            k, v = cache[0, :, :, :end], cache[1, :, :, :end]
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1).transpose(1, 2).flatten(2))
        return x + self.mlp(self.before_mlp(x))


def rotated(x: Tensor, at: int) -> Tensor:
    """Pairs of features turned by an angle that grows with the position."""
    half = x.shape[-1] // 2
    angle = torch.arange(at, at + x.shape[2])[:, None] * 10_000.0 ** (-torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class Model(nn.Module):
    """A decoder over bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.symbols, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.blocks, self.norm = nn.ModuleList(Block() for _ in range(LAYERS)), nn.RMSNorm(WIDTH)

    def forward(self, tokens: Tensor, at: int = 0, caches: Tensor | None = None) -> Tensor:
        x = self.symbols(tokens)
        for i, block in enumerate(self.blocks):
            x = block(x, at, None if caches is None else caches[i])
        return self.head(self.norm(x))


def text() -> Tensor:
    """The pages as bytes below 128."""
    joined = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    return torch.tensor(np.frombuffer(joined.encode("ascii", "replace"), np.uint8).astype(np.int64))


def train(model: Model, pages: Tensor, steps: int) -> float:
    """Cross-entropy over random windows; the last losses, in nats."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    losses = []
    for _ in range(steps):
        starts = torch.randint(len(pages) - 193, (8,))
        window = torch.stack([pages[start : start + 193] for start in starts])
        loss = F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return float(np.mean(losses[-20:]))


@torch.no_grad()
def sample(model: Model, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens `[B, LONGEST]` and the log-probabilities that the engine says they had."""
    shape = (LAYERS, 2, len(prompts), HEADS, PROMPT + LONGEST, WIDTH // HEADS)
    caches = torch.empty(shape, dtype=model.head.weight.dtype)
    logits, tokens, logps = model(prompts, 0, caches)[:, -1], [], []
    for at in range(LONGEST):
        logp = logits.float().log_softmax(-1)
        token = torch.multinomial(logp.exp(), 1)
        tokens.append(token)
        logps.append(logp.gather(1, token))
        logits = model(token, PROMPT + at, caches)[:, -1]
    return torch.cat(tokens, 1), torch.cat(logps, 1)


@torch.no_grad()
def score(model: Model, prompts: Tensor, tokens: Tensor, batch: int) -> Tensor:
    """Log-probabilities of whole responses, `batch` at a time."""
    found = []
    for begin in range(0, len(tokens), batch):
        rows = torch.cat([prompts, tokens], 1)[begin : begin + batch]
        logits = model(rows[:, :-1])[:, PROMPT - 1 :].float()
        found.append(logits.log_softmax(-1).gather(2, rows[:, PROMPT:, None]).squeeze(2))
    return torch.cat(found)


def measure(name: str, new: Tensor, old: Tensor, lengths: np.ndarray) -> dict[str, Any]:
    """What `gspo noise` says of the pair, and what was clipped with signs of A drawn at random."""
    mask = np.arange(LONGEST)[None] < lengths[:, None]
    arrays = {
        "0.logp": new.numpy()[mask],
        "0.old_logp": old.numpy()[mask],
        "0.offsets": np.append(0, np.cumsum(lengths)).astype(np.int64),
        "0.advantages": np.resize(np.float32([1, -1]), len(lengths)),
    }
    header = {"version": 1, "run": {"objective": Objective.gspo().to_dict()}, "parts": [{"step": 0, "minibatch": 0}]}
    with tempfile.TemporaryDirectory() as folder:
        save_file(arrays, f"{folder}/0.safetensors", metadata={"gspo_trace": json.dumps(header)})
        run = analyse(read_trace(Path(folder)))
    [first], one = run.minibatches, run.first
    assert one is not None
    d = arrays["0.logp"].astype(np.float64) - arrays["0.old_logp"]
    fourth = float(np.mean((d - d.mean()) ** 4) / np.var(d) ** 2) if d.any() else 0.0
    return {
        "pair": name,
        "std": one.std.value,
        "bias": one.bias.value,
        "bias_error": one.bias.error,
        "implied_bias": one.mismatch.implied_bias,
        "kurtosis": fourth,
        "inflation": one.inflation.value,
        "inflation_error": one.inflation.error,
        "slope": None if one.slope is None else one.slope.value,
        "slope_error": None if one.slope is None else one.slope.error,
        "predicted": first.predicted,
        "observed": first.observed,
        "tokens": one.tokens,
        "responses": one.responses,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for mismatch.json")
    parser.add_argument("--steps", type=int, default=200, help="of training")
    parser.add_argument("--responses", type=int, default=256)
    options = parser.parse_args()
    torch.manual_seed(0)
    pages, exact = text(), Model()
    loss = train(exact, pages, options.steps)
    rounded = Model().bfloat16()
    rounded.load_state_dict(exact.state_dict())
    starts = torch.randint(len(pages) - PROMPT, (options.responses,))
    prompts = torch.stack([pages[start : start + PROMPT] for start in starts])
    tokens, engine = sample(rounded, prompts)
    lengths = np.exp(np.random.default_rng(0).uniform(np.log(32), np.log(LONGEST), len(tokens))).astype(int)
    many, single = score(rounded, prompts, tokens, 32), score(rounded, prompts, tokens, 1)
    pairs = {
        "bfloat16 trainer, sampled by a bfloat16 engine": (many, engine),
        "float32 trainer, sampled by a bfloat16 engine": (score(exact, prompts, tokens, 32), engine),
        "bfloat16 trainer, 1 against 32 responses at once": (single, many),
    }
    found = {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "loss": loss,
        "pairs": [measure(name, new, old, lengths) for name, (new, old) in pairs.items()],
    }
    print(json.dumps(found, indent=1))
    if options.out:
        (options.out / "mismatch.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
