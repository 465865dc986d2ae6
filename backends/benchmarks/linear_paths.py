"""One measurement of one path from hidden states to loss and gradients, in the process that this file is run in.

Each path is the real code of what it names. A path imports its library when it is made, so that a
Python without it can run the others.
"""

from __future__ import annotations

import ctypes
import gc
import json
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

LOW, HIGH = 0.1, 0.1
Problem = SimpleNamespace
Step = Callable[[], Tensor | None]


def gspo(design: str) -> Callable[[Problem], tuple[Step, str]]:
    def make(problem: Problem) -> tuple[Step, str]:
        import gspo_torch

        objective = gspo_torch.Objective.gspo(gspo_torch.Clip(LOW, HIGH))

        def step() -> Tensor:
            return gspo_torch.linear_policy_loss(
                objective,
                hidden=problem.hidden,
                weight=problem.weight,
                tokens=problem.tokens,
                old_logp=problem.old_logp,
                advantages=problem.advantages,
                sequences=problem.mask,
                design=design,
            ).loss

        return step, f"torch {torch.__version__}"

    return make


def naive(problem: Problem) -> tuple[Step, str]:
    """All logits, log_softmax, gather, autograd."""
    import gspo_torch

    objective = gspo_torch.Objective.gspo(gspo_torch.Clip(LOW, HIGH))

    def step() -> Tensor:
        logits = torch.nn.functional.linear(problem.hidden, problem.weight).float()
        logp = logits.log_softmax(-1).gather(-1, problem.tokens[..., None])[..., 0]
        return gspo_torch.policy_loss(
            objective,
            logp=logp,
            old_logp=problem.old_logp,
            advantages=problem.advantages,
            sequences=problem.mask,
        ).loss

    return step, f"torch {torch.__version__}"


def products(problem: Problem) -> tuple[Step, str]:
    """The three matrix products of the naive path alone, on 512 tokens at a time: the time that no path can leave out."""

    def step() -> None:
        hidden, weight = problem.hidden.detach().flatten(0, 1), problem.weight.detach()
        for rows in hidden.split(512):
            logits = rows @ weight.T
            logits @ weight
            logits.T @ rows

    return step, f"torch {torch.__version__}"


def trl_logits(problem: Problem) -> tuple[Step, str]:
    """All logits and TRL's `selective_log_softmax`, then its `_compute_loss`."""
    import trl
    from trl.trainer.utils import selective_log_softmax

    def logps(*_: Any, **__: Any) -> tuple[Tensor, Tensor, None]:
        logits = torch.nn.functional.linear(problem.hidden, problem.weight)
        logp = selective_log_softmax(logits, problem.tokens)
        return logp, torch.zeros_like(logp.detach()), None

    return _trl_step(problem, logps), f"trl {trl.__version__}"


def trl_fused(problem: Problem) -> tuple[Step, str]:
    """TRL's `add_fused_lm_head` kernel with the entropy that its trainer asks for, then its `_compute_loss`."""
    import trl
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    def logps(*_: Any, **__: Any) -> tuple[Tensor, Tensor, None]:
        hidden, tokens = problem.hidden.flatten(0, 1), problem.tokens.flatten()
        logp, entropy, *_rest = ChunkedLogProbFunction.apply(
            hidden, problem.weight, None, tokens, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ("log_probs", "entropy")
        )
        return logp.view(problem.tokens.shape), entropy.view(problem.tokens.shape), None

    return _trl_step(problem, logps), f"trl {trl.__version__}"


def _trl_step(problem: Problem, logps: Callable[..., Any]) -> Step:
    from tempfile import gettempdir

    from accelerate import Accelerator
    from trl import GRPOConfig, GRPOTrainer

    on_host = problem.hidden.device.type == "cpu"
    args = GRPOConfig(
        output_dir=f"{gettempdir()}/gspo-trl",
        use_cpu=on_host,
        bf16=False,
        report_to="none",
        loss_type="grpo",
        importance_sampling_level="sequence",
        epsilon=LOW,
        epsilon_high=HIGH,
    )
    trainer = SimpleNamespace(
        args=args,
        accelerator=Accelerator(cpu=on_host),
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="sequence",
        beta=0.0,
        loss_type="grpo",
        epsilon_low=LOW,
        epsilon_high=HIGH,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=logps,
    )
    rows = torch.zeros(problem.tokens.shape[0], 1, dtype=torch.int64, device=problem.tokens.device)
    inputs = {
        "prompt_ids": rows,
        "prompt_mask": torch.ones_like(rows),
        "completion_ids": problem.tokens,
        "completion_mask": problem.mask.int(),
        "advantages": problem.advantages,
        "old_per_token_logps": problem.old_logp,
    }
    return lambda: GRPOTrainer._compute_loss(trainer, trainer.model, inputs)


def liger(problem: Problem) -> tuple[Step, str]:
    """Liger's fused GRPO loss at its default chunk of one sequence, sequence-level ratio, not compiled."""
    from importlib.metadata import version

    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    loss = LigerFusedLinearGRPOLoss(
        beta=0.0,
        compiled=False,
        use_ref_model=False,
        loss_type="grpo",
        importance_sampling_level="sequence",
        epsilon_low=LOW,
        epsilon_high=HIGH,
    )

    def step() -> Tensor:
        found, _ = loss(
            problem.hidden,
            problem.weight,
            problem.tokens,
            problem.mask.int(),
            problem.advantages,
            old_per_token_logps=problem.old_logp,
        )
        return found

    return step, f"liger-kernel {version('liger-kernel')}"


PATHS = {
    "naive": naive,
    "products": products,
    "gspo": gspo("auto"),
    "gspo recompute": gspo("recompute"),
    "gspo single pass": gspo("single_pass"),
    "trl logits": trl_logits,
    "trl fused": trl_fused,
    "liger": liger,
}
ROOMS = {name: "peers" if name in ("trl logits", "trl fused", "liger") else "gspo" for name in PATHS}


def build(size: list[Any], dtype: str, device: str) -> Problem:
    """Seeded inputs; the ratio of a clipped response is e^{0.3}, of any other e^{±0.01}."""
    batch, length, vocabulary, width, clipped = size
    generator = torch.Generator(device).manual_seed(0)
    like: dict[str, Any] = {"generator": generator, "device": device}
    hidden = torch.randn(batch, length, width, **like).to(getattr(torch, dtype))
    weight = torch.randn(vocabulary, width, **like).mul_(width**-0.5).to(getattr(torch, dtype))
    tokens = torch.randint(vocabulary, (batch, length), **like)
    advantages = torch.where(torch.arange(batch, device=device) % 2 == 0, 1.0, -1.0)
    drift = 0.01 * torch.where(torch.arange(batch, device=device) % 4 < 2, 1.0, -1.0)
    drift[: 2 * round(clipped * batch) : 2] = 0.3
    logp = torch.empty(batch, length, device=device)
    for row in range(batch):
        for at in range(0, length, 256):
            logits = (hidden[row, at : at + 256] @ weight.T).float()
            here = tokens[row, at : at + 256, None]
            logp[row, at : at + 256] = (logits.gather(-1, here) - logits.logsumexp(-1, keepdim=True))[:, 0]
    return Problem(
        hidden=hidden.requires_grad_(),
        weight=weight.requires_grad_(),
        tokens=tokens,
        advantages=advantages,
        old_logp=logp - drift[:, None],
        mask=torch.ones(batch, length, dtype=torch.bool, device=device),
    )


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Peak memory of one step, then the time of another."""
    if task["threads"]:
        torch.set_num_threads(task["threads"])
    warm, _ = PATHS[task["path"]](build([2, 8, 64, 8, 0.0], task["dtype"], task["device"]))
    _run(warm)
    problem = build(task["size"], task["dtype"], task["device"])
    step, version = PATHS[task["path"]](problem)
    peak, loss = peak_of(lambda: _run(step), task["device"])
    leaves = (problem.hidden, problem.weight)
    gradients = [one.grad for one in leaves if one.grad is not None]
    norms = [float(one.float().norm()) for one in gradients]
    size = sum(one.numel() * one.element_size() for one in gradients)
    for one in leaves:
        one.grad = None
    del gradients
    seconds, processor = seconds_of(lambda: _run(step), task["device"])
    return {
        "peak_bytes": peak,
        "gradient_bytes": size,
        "seconds": seconds,
        "processor_seconds": processor,
        "loss": loss,
        "norms": norms,
        "version": version,
    }


def _run(step: Step) -> float:
    loss = step()
    if loss is None:
        return 0.0
    loss.backward()
    return float(loss.detach())


def peak_of(run: Callable[[], float], device: str) -> tuple[int, float]:
    """The highest memory above what is held before."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = run()
        return torch.cuda.max_memory_allocated() - before, loss
    _give_back()
    before = _resident("VmRSS")
    forgotten = _forget_peak()
    loss = run()
    return max(0, (_resident("VmHWM") if forgotten else _highest()) - before), loss


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


def _give_back() -> None:
    """Free pages that the allocator kept would hide as much of the peak."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _highest() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _forget_peak() -> bool:
    """Starts the kernel's record of the highest resident size anew, where it allows that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return _resident("VmHWM") <= _resident("VmRSS") + (1 << 20)


def seconds_of(run: Callable[[], Any], device: str) -> tuple[float, float]:
    """Wall and processor time from an idle device to an idle device."""
    if device == "cuda":
        torch.cuda.synchronize()
    start, processor = time.perf_counter(), time.process_time()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - processor


def _main() -> None:
    task = json.loads(sys.argv[1])
    if task.get("probe"):
        PATHS[task["path"]](build([2, 8, 64, 8, 0.0], "float32", "cpu"))
        print("{}")
        return
    print(json.dumps(measure(task)))


if __name__ == "__main__":
    _main()
