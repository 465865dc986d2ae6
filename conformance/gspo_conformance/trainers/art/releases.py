"""What ART's releases do differently: up to 0.5.17 options reach the loss as they are, and it knows means alone."""

from __future__ import annotations

import math
from dataclasses import fields
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from inspect import signature
from typing import Any

from art.loss import loss_fn
from art.preprocessing import tokenize
from art.preprocessing.pack import packed_tensors_from_tokenized_results

from ...target import Skip
from ...words import HarnessError
from ..adapter import Settings
from .dialect import DEFAULTS, is_ppo

NAME = f"ART {version('openpipe-art')}"
FIELDS = {one.name for one in fields(tokenize.TokenizedResult)}
DROPS = "drop_zero_advantage_trajectories" in signature(tokenize.tokenize_trajectory_groups).parameters
SUMS = "reduction" in signature(loss_fn).parameters
PACKS = "pack_results" in signature(packed_tensors_from_tokenized_results).parameters
if "trajectory" not in FIELDS:
    raise HarnessError(f"{NAME} keeps no trajectory beside its tokens: 0.5.11 is the first release that can be checked")


def config(settings: Settings) -> Any:
    """`dev.TrainConfig` as `backend.train` makes it."""
    given = {key: value for key, value in settings.items() if key != "loss_fn" and value != DEFAULTS[key]}
    given["ppo"] = is_ppo(DEFAULTS | settings)
    if find_spec("art._backend_training") is None:
        return given
    build = import_module("art._backend_training").build_rl_train_configs
    return build(learning_rate=1.0, **given)[1]


def loss(rows: dict[str, Any], new: Any, options: Any, reduction: str) -> Any:
    """What `loss_fn` makes of the rows; a skip where a release has no sums."""
    if SUMS:
        return loss_fn(rows, new, None, None, options, reduction=reduction).policy_loss
    if reduction == "sum":
        raise Skip(f"{NAME} divides every micro-batch by its own tokens")
    return loss_fn(rows, new, None, None, options).mean_policy_loss


def packing(pack_results: bool) -> dict[str, bool]:
    """The option that gives every result a row of its own; a skip where a release has none."""
    if PACKS:
        return {"pack_results": pack_results}
    if not pack_results:
        raise Skip(f"{NAME} divides every micro-batch by its own tokens")
    return {}


def dropping(drop: bool) -> dict[str, bool]:
    """The option that leaves out responses with the advantage 0, which earlier releases do in any case."""
    return {"drop_zero_advantage_trajectories": drop} if DROPS else {}


def nothing_won() -> float:
    """A reward of responses whose advantages are put in later: one that no release leaves out."""
    return 0.0 if DROPS else math.nan


def result(**given: Any) -> Any:
    """A `TokenizedResult` with the fields that this release has."""
    every = given | {"tokens": [""] * len(given["token_ids"])}
    return tokenize.TokenizedResult(**{name: value for name, value in every.items() if name in FIELDS})
