"""How AReaL lays out a batch: groups one after another, one prompt token in front, arrays shifted by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ...target import Case
from ...tensors import NumPyArray
from ..adapter import tensor


def in_groups(case: Case, norm: Callable[[Any], Any]) -> NumPyArray:
    """`norm` of the rewards in the order of their groups, in the order of the case again."""
    rewards = case.inputs["rewards"]
    order = np.argsort(case.inputs["groups"], kind="stable") if "groups" in case.inputs else np.arange(len(rewards))
    found = np.empty_like(rewards)
    found[order] = norm(tensor(rewards[order])).numpy()
    return found


def shifted(case: Case, logp: NumPyArray, ref_logp: NumPyArray) -> dict[str, Any]:
    """Rows of a prompt token and the tokens of the case, up to the last one that counts."""
    mask = case.inputs["mask"] != 0
    last = np.where(mask.any(1), mask.shape[1] - np.argmax(mask[:, ::-1], 1), 0)
    column = np.zeros((mask.shape[0], 1))
    attention = np.arange(mask.shape[1] + 1) <= last[:, None]
    return {
        "input_ids": torch.zeros(attention.shape, dtype=torch.int64),
        "attention_mask": tensor(attention).long(),
        "loss_mask": tensor(np.hstack([column, mask])),
        "logprobs": tensor(np.hstack([column, logp]), case.dtype),
        "ref_logp": tensor(np.hstack([ref_logp, column]), case.dtype),
    }


def reward_first(case: Case, name: str) -> dict[str, Any]:
    """A batch in which the reward of every token is its KL term: log-probability minus the reward, against 0."""
    rewards = np.where(case.inputs["mask"] != 0, case.inputs[name], 0)
    batch = shifted(case, -rewards, np.zeros_like(rewards))
    if "values" in case.inputs:
        column = np.zeros((rewards.shape[0], 1))
        batch["values"] = tensor(np.hstack([case.inputs["values"], column]), case.dtype)
    return batch | {"rewards": torch.zeros(rewards.shape[0])}
