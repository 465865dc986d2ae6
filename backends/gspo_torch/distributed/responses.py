"""Statistics over the responses of all ranks: gather, compute as on one rank, keep the own part (GSPO-DIST-4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import gspo_core
from gspo_core.validation import as_boolean, check_array, check_floating, check_integer

from .ranks import data_group, gather_uneven


def group_advantages(
    rewards: Tensor, groups: Tensor, *, data: Any = None, valid: Tensor | None = None, **settings: Any
) -> Tensor:
    """Â_i of `gspo_core.group_advantages` over the responses of every rank, for the responses of this one.

    Clause GSPO-DIST-4. A group may be spread over ranks, and ranks may hold different numbers of
    responses, or none. Group ids must name the same group on every rank.

    Args: `rewards` `[n]`, `groups` `[n]` integer ids, `valid` `[n]` on this rank; `data` the ranks
    (all where None); `settings` as in `gspo_core.group_advantages`. Returns `[n]`.
    """
    return _of_union(gspo_core.group_advantages, rewards, groups, valid, data, settings)


def leave_one_out_advantages(
    rewards: Tensor, groups: Tensor, *, data: Any = None, valid: Tensor | None = None
) -> Tensor:
    """r_i minus the mean of the other members of its group, on whichever rank they are. Clause GSPO-DIST-4."""
    return _of_union(gspo_core.leave_one_out_advantages, rewards, groups, valid, data, {})


def informative_groups(
    rewards: Tensor, groups: Tensor, *, data: Any = None, valid: Tensor | None = None, **bounds: Any
) -> Tensor:
    """`gspo_core.informative_groups` over the responses of every rank, for the responses of this one."""
    return _of_union(gspo_core.informative_groups, rewards, groups, valid, data, bounds)


def _of_union(
    function: Callable[..., Tensor],
    rewards: Tensor,
    groups: Tensor,
    valid: Tensor | None,
    data: Any,
    settings: dict[str, Any],
) -> Tensor:
    valid = _checked(rewards, groups, valid)
    group = data_group(data)
    parts = [gather_uneven(values, group, name) for name, values in _named(rewards, groups, valid)]
    everyone = [torch.cat(part) for part in parts]
    if everyone[0].shape[0] == 0:
        return function(rewards.new_zeros(1), groups.new_zeros(1), **settings)[:0]
    start = sum(part.shape[0] for part in parts[0][: group.rank()])
    whole = function(everyone[0], everyone[1], valid=everyone[2], **settings)
    return whole[start : start + rewards.shape[0]]


def _named(rewards: Tensor, groups: Tensor, valid: Tensor) -> tuple[tuple[str, Tensor], ...]:
    return ("rewards", rewards), ("groups", groups), ("valid", valid)


def _checked(rewards: Tensor, groups: Tensor, valid: Tensor | None) -> Tensor:
    """`valid` as booleans, after checks here rather than in the core, so that one rank's mistake is an error on it and not a hang of the others."""
    check_floating("rewards", rewards)
    check_integer("groups", groups)
    if rewards.ndim != 1:
        raise ValueError(f"rewards: expected shape [n], got {tuple(rewards.shape)}")
    for name, values in (("groups", groups), ("valid", valid)):
        if values is not None:
            check_array(name, values)
            if values.shape != rewards.shape:
                raise ValueError(
                    f"{name}: expected shape {tuple(rewards.shape)} like rewards, got {tuple(values.shape)}"
                )
    return torch.ones_like(groups, dtype=torch.bool) if valid is None else as_boolean("valid", valid)
