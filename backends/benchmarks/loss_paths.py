"""Paths from log-probabilities to the GSPO loss and its gradient, timed in turn in the process that this file is run in.

Each path is the real code of what it names, forward and backward, with the metrics that it computes on
the way. A path imports its library when it is made, so that a Python without it can run the others. Trainers are
called through the adapters of the conformance suite, whose conversions happen before the clock starts.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

LOW, HIGH = 3e-4, 4e-4
# What a loss has to move for each token: two log-probabilities and a mask in, a gradient out.
BYTES = 13
Batch = SimpleNamespace
Loss = Callable[[], Tensor]


def batch(size: int, length: int, packed: bool) -> Batch:
    """Log-ratios of standard deviation 0.01, lengths between half and all of `length`, which is the width where responses are padded."""
    torch.manual_seed(0)
    old_logp = -torch.rand(size, length)
    logp = old_logp + 0.01 * torch.randn(size, length)
    lengths = torch.randint(length // 2, length + 1, (size, 1))
    where = {"mask": torch.arange(length) < lengths}
    if packed:
        logp, old_logp = logp[where["mask"]], old_logp[where["mask"]]
        where = {"offsets": torch.nn.functional.pad(lengths.flatten().cumsum(0), (1, 0))}
    found = {"logp": logp.requires_grad_(), "old_logp": old_logp, "advantages": torch.randn(size)}
    return Batch(**found, where=where, gradient=None)


def gspo_torch(data: Batch) -> tuple[Loss, str]:
    """The closed form."""
    import gspo_torch

    return _ours(gspo_torch.policy_loss, data), f"torch {torch.__version__}"


def compiled(data: Batch) -> tuple[Loss, str]:
    """The same under `torch.compile`."""
    import gspo_torch

    return _ours(torch.compile(gspo_torch.policy_loss, fullgraph=True), data), f"torch {torch.__version__}"


def autograd(data: Batch) -> tuple[Loss, str]:
    """The core, differentiated by autograd."""
    import gspo_core
    import gspo_torch  # noqa: F401  registers the backend

    return _ours(gspo_core.policy_loss, data), f"torch {torch.__version__}"


def _ours(function: Any, data: Batch) -> Loss:
    from gspo_core import Objective, Packed

    objective = Objective.from_dict(data.objective)
    sequences = Packed(data.where["offsets"]) if "offsets" in data.where else data.where["mask"]
    rest = {"old_logp": data.old_logp, "advantages": data.advantages, "sequences": sequences}
    return lambda: function(objective, logp=data.logp, **rest).loss


def verl_function(data: Batch) -> tuple[Loss, str]:
    """`compute_policy_loss_gspo` with the aggregation of the paper; advantages are per token there."""
    from verl.trainer.ppo.core_algos import compute_policy_loss_gspo
    from verl.workers.config import ActorConfig

    settings = {"strategy": "fsdp", "rollout_n": 1, "ppo_micro_batch_size_per_gpu": 1}
    mode = "seq-mean-token-mean"
    config = ActorConfig(clip_ratio_low=LOW, clip_ratio_high=HIGH, loss_agg_mode=mode, **settings)
    mask = data.where["mask"]
    advantages = (data.advantages[:, None] * mask).contiguous()

    def loss() -> Tensor:
        return compute_policy_loss_gspo(data.old_logp, data.logp, advantages, mask, mode, config)[0]

    return loss, f"verl {version('verl')}"


def trainer(name: str, settings: dict[str, Any], objective: dict[str, Any], data: Batch) -> tuple[Loss, str]:
    """The loss of a trainer under `settings`, as the suite's adapter calls it, on tensors that are there already."""
    adapter = import_module(f"gspo_conformance.trainers.{name}.adapter")
    from gspo_conformance.target import Case

    arrays = {"logp": data.logp, "old_logp": data.old_logp, "advantages": data.advantages, **data.where}
    case = Case("policy_loss", {"objective": objective}, {key: value.detach().numpy() for key, value in arrays.items()})
    target = adapter.claims()
    # The function of the log-probabilities, instead of its value.
    sys.modules[target.loss.__module__].torch_loss = lambda _case, loss: loss
    # JSON has no tuples, and adapters keep what they build by its settings.
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    loss = target.loss(settings, case)
    return lambda: loss(data.logp), f"{name} {adapter.RELEASE}"


PATHS = {"gspo_torch": gspo_torch, "compiled": compiled, "autograd": autograd, "verl_function": verl_function}


def path(name: str, task: dict[str, Any], data: Batch) -> tuple[Loss, str]:
    """One of ours, verl's function alone, or a trainer of the suite."""
    data.objective = task["objective"]
    return PATHS[name](data) if name in PATHS else trainer(name, task["settings"], task["objective"], data)


def step(data: Batch, loss: Loss) -> tuple[float, float]:
    """Processor and wall seconds for the loss and a gradient in fresh memory."""
    data.logp.grad = None
    begin = time.process_time(), time.perf_counter()
    loss().backward()
    return time.process_time() - begin[0], time.perf_counter() - begin[1]


def stream(data: Batch) -> tuple[float, float]:
    """The same for a copy of one token array into fresh memory: 8 bytes per token."""
    data.gradient = None
    begin = time.process_time(), time.perf_counter()
    data.gradient = data.old_logp.clone()
    return time.process_time() - begin[0], time.perf_counter() - begin[1]


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """`rounds` in which all paths take turns, after a few that do not count; every gradient is the first path's."""
    torch.set_num_threads(task["threads"])
    data = batch(task["batch"], task["length"], task["packed"])
    made = {name: path(name, task, data) for name in task["paths"]}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in (*made, "stream")}
    # Some trainers add one number after the other in float32: the last digits of a mean over T tokens are T roundings away.
    expected, tolerance = None, 1e-5 + task["length"] * 2.0**-24
    for loss, _ in made.values():
        step(data, loss)
        expected = data.logp.grad if expected is None else expected
        torch.testing.assert_close(data.logp.grad, expected, rtol=tolerance, atol=1e-9)
    for turn in range(-5, task["rounds"]):
        for name, (loss, _) in made.items():
            taken = step(data, loss)
            seconds[name] += [taken] if turn >= 0 else []
        seconds["stream"] += [stream(data)] if turn >= 0 else []
    return {"seconds": seconds, "versions": {name: found for name, (_, found) in made.items()}}


def main() -> None:
    print(json.dumps(measure(json.loads(sys.argv[1]))))


if __name__ == "__main__":
    main()
