"""What ms-swift's releases do differently: the modules of the loss, what it takes of a batch, and the settings that it has."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import fields
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

from ...target import Skip
from ...words import HarnessError
from .. import demands
from ..adapter import Settings
from ..stubs import stub
from .dialect import DEFAULTS

RELEASE = version("ms-swift")
NAME = f"ms-swift {RELEASE}"
# From 4.4 on a batch has a class, advantages are of tokens and a function of their own.
BATCHES = find_spec("swift.rl_core") is not None
if not BATCHES:
    stub("vllm", "math_verify")
FOUR = find_spec("swift.rlhf_trainers") is not None
GRPOTrainer: Any = import_module(
    "swift.rlhf_trainers.grpo_trainer" if FOUR else "swift.trainers.rlhf_trainer.grpo_trainer"
).GRPOTrainer
ARGUMENTS = import_module("swift.rlhf_trainers.args_mixin" if FOUR else "swift.trainers.arguments").GRPOArgumentsMixin
HAS = {one.name for one in fields(ARGUMENTS)} | {"loss_type", "beta", "max_completion_length"}
if "importance_sampling_level" not in HAS:
    raise HarnessError(f"{NAME} has no importance_sampling_level: 3.7.0 is the first release with a sequence ratio")
REFUSED = {
    "Unknown loss type": "loss_type",
    "Unknown importance sampling level": "importance_sampling_level",
}
METHODS = (
    "_undo_gradient_accumulation_scaling",
    "_get_rollout_is_correction",
    "_apply_rollout_importance_sampling",
    "_compute_sequence_level_ratios",
    "_compute_off_policy_sequence_mask",
    "_compute_rollout_offpolicy_metrics",
    "_compute_is_correction_metrics",
)


def had(settings: Settings) -> None:
    """A skip where a setting that this release has not is to be something else than it is by default."""
    demands.had(settings, HAS, DEFAULTS, NAME)


def given_methods(trainer: SimpleNamespace) -> SimpleNamespace:
    """The trainer's own methods that its loss calls, of those that this release has."""
    for name in METHODS:
        if hasattr(GRPOTrainer, name):
            setattr(trainer, name, getattr(GRPOTrainer, name).__get__(trainer))
    trainer._metrics = {"train": defaultdict(list)}
    return trainer


def loss(trainer: SimpleNamespace, batch: dict[str, Any]) -> Any:
    """The loss of a batch; a skip where the release does not know what it is to be."""
    try:
        if BATCHES:
            batches = import_module("swift.rl_core.data").GRPOBatch
            return GRPOTrainer._compute_loss_and_metrics(trainer, trainer.model, {}, batches(**batch))[0]
        batch["input_ids"] = batch["completion_mask"]  # its size is read
        if hasattr(GRPOTrainer, "_compute_loss_and_metrics"):
            return GRPOTrainer._compute_loss_and_metrics(trainer, trainer.model, batch)[0]
        return GRPOTrainer._compute_loss(trainer, trainer.model, batch)
    except ValueError as error:
        raise demands.refused(error, REFUSED, vars(trainer), NAME) from error


def advantages(*given: Any) -> Any:
    """`compute_advantages`; a skip where advantages are computed in the midst of a trainer's step."""
    if not BATCHES:
        raise Skip(f"{NAME} computes advantages inside a step of its trainer, in no function of their own")
    return import_module("swift.rl_core.advantage").compute_advantages(*given)[0]
