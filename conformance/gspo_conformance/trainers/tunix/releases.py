"""What Tunix's releases do differently: up to 0.1.6 a row is one response with one advantage, k3 is the KL term, and functions lie elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from ...target import Skip
from ...words import HarnessError
from .. import demands
from ..adapter import Settings

RELEASE = version("google-tunix")
NAME = f"Tunix {RELEASE}"
if find_spec("tunix.rl.function_registry") is None:
    raise HarnessError(f"{NAME} has no loss_agg_mode: 0.1.4 is the first release that can be checked")
registry: Any = import_module("tunix.rl.function_registry")
common: Any = import_module("tunix.rl.common")
AGENTIC = find_spec("tunix.rl.agentic.agentic_grpo_learner") is not None
GRPOConfig = import_module(f"tunix.rl.{'agentic' if AGENTIC else 'experimental'}.agentic_grpo_learner").GRPOConfig
EPS = 1e-6 if AGENTIC else 1e-4
for learner in ("tunix.rl.grpo.grpo_learner", "tunix.rl.grpo.drgrpo_learner"):
    if find_spec(learner) is not None:
        import_module(learner)

PACKS = "segment_ids" in {one.name for one in fields(common.TrainExample)}
# What holds where a release has no such setting.
WITHOUT = {"kl_loss_mode": "low_var_kl", "kl_clamp_value": None}
UNKNOWN = {"Unsupported loss aggregation mode": "loss_agg_mode"}


def config(settings: Settings) -> Any:
    """A `GRPOConfig`, with the temperature that the learner takes from its rollouts; a skip where a release lacks one of these settings."""
    has = {one.name for one in fields(GRPOConfig)}
    made = GRPOConfig(**demands.had(settings, has, WITHOUT, NAME))
    if PACKS:
        made.temperature = 1.0
    return made


def loss(model: Any, batch: Any, config: Any, settings: Settings) -> Any:
    """The loss that this release registers under the name in its config."""
    try:
        return registry.get_policy_loss_fn(config.policy_loss_fn)(model, batch, config, pad_id=-1, eos_id=-2)[0]
    except ValueError as error:
        raise demands.refused(error, UNKNOWN, settings, NAME) from None


def segments(ids: Any) -> dict[str, Any]:
    """The field of a batch that tells packed responses apart."""
    if PACKS:
        return {"segment_ids": ids}
    if ids is not None:
        raise Skip(f"{NAME} has one response in a row")
    return {}


def estimator(name: str) -> Callable[[Any, int], Any]:
    """Advantages by this name, `grpo` being what the config names."""
    asked = GRPOConfig().advantage_estimator if name == "grpo" else name
    try:
        return registry.get_advantage_estimator(asked)
    except LookupError:
        raise Skip(f"{NAME} has no advantage_estimator {name}") from None
