"""What one part of a step adds to the loss and the metrics of the union, as numbers that merge."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from gspo_core.metrics import RatioSums, ratio_statistics, ratio_sums
from gspo_core.step import Step, unit_log_ratio

from ..results import PolicyLoss
from ..solution import Solution
from .ranks import gather


class Report(NamedTuple):
    """0-d float64 each. Sums, except for the last four: see `gspo_core.metrics.RatioSums`."""

    loss: Tensor
    kl: Tensor
    sequences: Tensor
    tokens: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
    clipped_dual: Tensor
    divergence: Tensor
    moved: Tensor
    units: Tensor
    ratio: Tensor
    low: Tensor
    top: Tensor
    scaled: Tensor
    squares: Tensor


def report_of(step: Step, found: PolicyLoss | Solution) -> Report:
    """The report of a step whose loss is `found`, a share of the union's."""
    metrics = {name: value.detach().double() for name, value in found.metrics.items()}
    units = RatioSums(*(value.double() for value in ratio_sums(step, step.stop(unit_log_ratio(step)))))
    tokens = metrics["num_tokens"]
    return Report(
        loss=found.loss.detach().double(),
        kl=metrics["kl_penalty"],
        sequences=metrics["num_sequences"],
        tokens=tokens,
        clipped_low=torch.round(metrics["clip_fraction_low"] * tokens),
        clipped_high=torch.round(metrics["clip_fraction_high"] * tokens),
        clipped_dual=torch.round(metrics["clip_fraction_dual"] * tokens),
        divergence=metrics["approx_kl"] * tokens,
        moved=1 - metrics["ratio_is_one"],
        units=units.count,
        ratio=units.total,
        low=units.low,
        top=units.top,
        scaled=units.scaled,
        squares=units.squares,
    )


def nothing(like: Tensor) -> Report:
    """The report of no responses."""
    zero = torch.zeros((), dtype=torch.float64, device=like.device)
    return Report(*[zero] * 11, low=zero + float("inf"), top=zero - float("inf"), scaled=zero, squares=zero)


def result_of(reports: list[Report], like: Tensor, data: dist.ProcessGroup) -> PolicyLoss:
    """The loss and metrics of the union of this rank's reports and those of the other ranks of `data`."""
    mine = _merged(torch.stack([torch.stack(report) for report in [nothing(like), *reports]]))
    whole = Report(*_merged(gather(mine, data, "the metrics")).to(like.dtype))
    tokens = whole.tokens.clamp(min=1)
    low, high, dual = (part / tokens for part in (whole.clipped_low, whole.clipped_high, whole.clipped_dual))
    units = RatioSums(whole.units, whole.ratio, *whole[-4:])
    metrics = {
        "clip_fraction": (whole.clipped_low + whole.clipped_high + whole.clipped_dual) / tokens,
        "clip_fraction_low": low,
        "clip_fraction_high": high,
        "clip_fraction_dual": dual,
        "approx_kl": whole.divergence / tokens,
        "kl_penalty": whole.kl,
        "num_sequences": whole.sequences,
        "num_tokens": whole.tokens,
        "ratio_is_one": (whole.moved == 0).to(like.dtype),
    }
    return PolicyLoss(whole.loss, metrics | ratio_statistics(units))


def _merged(rows: Tensor) -> Tensor:
    """One report from several, a row each: sums add, ends extend, and what is relative to max x is put on one scale."""
    columns = Report(*rows.unbind(1))
    top = columns.top.max()
    scale = torch.where(columns.top == top, 1.0, torch.exp(columns.top - top))
    scale = torch.where(columns.units > 0, scale, 0.0)
    ends = columns.low.min(), top, (columns.scaled * scale).sum(), (columns.squares * scale * scale).sum()
    return torch.cat([rows[:, :11].sum(0), torch.stack(ends)])
