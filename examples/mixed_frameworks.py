"""The same batch through NumPy, PyTorch and JAX: the same loss, gradient and metrics, to the last bit that can be expected.

    pip install 'gspo[torch,jax]' numpy
    python examples/mixed_frameworks.py

float32 arithmetic rounds every operation, and each framework orders its sums and approximates its exponential in its own
way, so answers differ in their last bits, and by no more. The distance to the answer in float64 is printed twice: in ulps
of the answer, and in ulps of the terms that it is made of. They are two things where terms nearly cancel, in the loss and in
the divergence: a loss of 1e-4 is a mean of terms near 1, and no float32 arithmetic knows it better than to an ulp of 1.

A ratio near 1 is known to an ulp or two, and the clip range is 5,033 of them wide below 1 and 3,355 above: all three
clip the same responses.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import torch

import gspo_core
import gspo_jax
import gspo_torch

Answers = dict[str, np.ndarray]
Batch = dict[str, np.ndarray]
METRICS = ("ratio_mean", "ratio_min", "ratio_max", "approx_kl", "effective_sample_size", "clip_fraction")


def rollout(responses: int, length: int, seed: int) -> Batch:
    """Responses of unequal length after a step that moved them about as far as the clip range is wide."""
    draws = np.random.default_rng(seed)
    lengths = draws.integers(1, length + 1, responses)
    moved = 4e-4 * draws.standard_normal((responses, 1)) + 5e-3 * draws.standard_normal((responses, length))
    old_logp = -draws.exponential(size=(responses, length)).astype(np.float32)
    groups = np.arange(responses) // 4
    rewards = draws.integers(0, 2, responses).astype(np.float32)
    return {
        "logp": (old_logp + moved).astype(np.float32),
        "old_logp": old_logp,
        "advantages": gspo_core.group_advantages(rewards, groups),
        "sequences": np.arange(length) < lengths[:, None],
    }


def numpy_answers(batch: Batch) -> Answers:
    """The core on NumPy's arrays; its gradient is the closed form, since NumPy differentiates nothing."""
    loss, metrics = gspo_core.policy_loss(gspo_core.Objective.gspo(), **batch)
    gradient = gspo_core.policy_gradient(gspo_core.Objective.gspo(), **batch)
    ratio = gspo_core.sequence_ratio(batch["logp"], batch["old_logp"], batch["sequences"])
    return {"loss": loss, "gradient": gradient, "ratio": ratio} | {name: metrics[name] for name in METRICS}


def torch_answers(batch: Batch) -> Answers:
    """`gspo_torch` and its backward pass."""
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    logp = tensors["logp"].requires_grad_()
    loss, metrics = gspo_torch.policy_loss(gspo_torch.Objective.gspo(), **tensors)
    loss.backward()
    ratio = gspo_torch.sequence_ratio(logp.detach(), tensors["old_logp"], tensors["sequences"])
    found = {"loss": loss.detach(), "gradient": logp.grad, "ratio": ratio} | {name: metrics[name] for name in METRICS}
    return {name: tensor.numpy() for name, tensor in found.items()}


def jax_answers(batch: Batch) -> Answers:
    """`gspo_jax`, compiled, and JAX's own gradient of it."""
    rest = {name: jnp.asarray(array) for name, array in batch.items() if name != "logp"}

    def loss(logp: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        return tuple(gspo_jax.policy_loss(gspo_jax.Objective.gspo(), logp=logp, **rest))

    logp = jnp.asarray(batch["logp"])
    (value, metrics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(logp)
    ratio = jax.jit(gspo_jax.sequence_ratio)(logp, rest["old_logp"], rest["sequences"])
    found = {"loss": value, "gradient": gradient, "ratio": ratio} | {name: metrics[name] for name in METRICS}
    return {name: np.asarray(array) for name, array in found.items()}


FRAMEWORKS: dict[str, Callable[[Batch], Answers]] = {
    "NumPy": numpy_answers,
    "PyTorch": torch_answers,
    "JAX": jax_answers,
}


def exact_answers(batch: Batch) -> Answers:
    """The core in float64, from the same float32 inputs."""
    floats = {name: array.astype(np.float64) for name, array in batch.items() if name != "sequences"}
    return numpy_answers(floats | {"sequences": batch["sequences"]})


def ulps(found: np.ndarray, exact: np.ndarray, size: np.ndarray | float) -> float:
    """The largest distance to the exact answer, in units of the last place of a float32 of that size."""
    spacing = np.spacing(np.abs(size).astype(np.float32)).astype(np.float64)
    return float(np.max(np.abs(found.astype(np.float64) - exact) / spacing))


def terms(batch: Batch, exact: Answers) -> dict[str, np.ndarray]:
    """The size of what an answer is a mean of, where that is not its own: |s A| in the loss, |d| in the divergence."""
    moved = np.abs(batch["logp"] - batch["old_logp"])[batch["sequences"]]
    return exact | {"loss": np.mean(np.abs(batch["advantages"])), "approx_kl": np.mean(moved)}


def table(exact: Answers, answers: dict[str, Answers], sizes: dict[str, np.ndarray]) -> str:
    """A line per answer: its value, and the ulps of each framework."""
    names = "".join(f"{name:>9}" for name in answers)
    lines = [
        f"{'':22} {'float64':>14}  {'ulps of the answer':^27}  {'ulps of its terms':^27}",
        f"{'':37}  {names}  {names}",
    ]
    for name, value in exact.items():
        shown = f"{float(value):14.6e}" if value.ndim == 0 else f"{f'{value.size:,} values':>14}"
        columns = [
            "".join(f"{ulps(one[name], value, size):9.2f}" for one in answers.values()) for size in (value, sizes[name])
        ]
        lines.append(f"{name:22} {shown}  {'  '.join(columns)}")
    return "\n".join(lines) + "\n"


def clipped(gradient: np.ndarray, batch: Batch) -> np.ndarray:
    """`[num_sequences]`: whose gradient is 0 although their advantage is not."""
    return np.all(gradient == 0, axis=1) & (batch["advantages"] != 0)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses", type=int, default=256, help="in the batch (default: 256)")
    parser.add_argument("--length", type=int, default=512, help="tokens at most in a response (default: 512)")
    parser.add_argument("--seed", type=int, default=0, help="of the batch (default: 0)")
    found = parser.parse_args(arguments)
    for name, least in (("responses", 1), ("length", 1), ("seed", 0)):
        if getattr(found, name) < least:
            parser.error(f"--{name}: expected at least {least}, got {getattr(found, name)}")
    batch = rollout(found.responses, found.length, found.seed)
    exact = exact_answers(batch)
    answers = {framework: ask(batch) for framework, ask in FRAMEWORKS.items()}
    sys.stdout.write(table(exact, answers, terms(batch, exact)))
    decisions = [clipped(one["gradient"], batch) for one in (exact, *answers.values())]
    same = all(np.array_equal(decisions[0], other) for other in decisions[1:])
    word = "the same" if same else "not the same"
    sys.stdout.write(f"\nclipped: {word} {decisions[0].sum()} of {found.responses} responses, as in float64\n")


if __name__ == "__main__":
    main()
