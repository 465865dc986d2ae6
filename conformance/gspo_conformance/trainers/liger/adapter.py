"""`LigerFusedLinearGRPOLoss`, from hidden states to the loss, and its KL estimate; no compilation, which changes no number."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from inspect import signature
from typing import Any

import torch
from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss
from liger_kernel.chunked_loss.grpo_loss import k3_loss_fn
from torch import Tensor

from ...target import INPUT_DTYPES, Case, Skip
from ...words import HarnessError
from .. import demands
from ..adapter import Settings, TrainerTarget, offered, tensor, torch_kl
from .dialect import DEFAULTS, DIALECT
from .head import WEIGHT, gradient_of, hidden_states

RELEASE = version("liger-kernel")
NAME = f"Liger {RELEASE}"
SETTINGS = signature(LigerFusedLinearGRPOLoss.__init__).parameters
if "importance_sampling_level" not in SETTINGS:
    raise HarnessError(f"{NAME} has no sequence ratio: 0.6.3 is the first release with importance_sampling_level")
# The mean over tokens, of one rank: 0.6.3 has it under this name alone.
TOKEN_MEAN = {"dapo": SETTINGS["loss_type"].default}
# Up to 0.8.0 the tokens of the micro-batch are counted, whatever the step.
COUNTS = "num_items_in_batch" in signature(LigerFusedLinearGRPOLoss.forward).parameters


def policy_loss(settings: Settings, case: Case) -> Mapping[str, Any]:
    """The loss of one micro-batch and its gradient; a reference where the case has one, else the policy is its own."""
    given = tensor(case.inputs["logp"], "float32")
    hidden, logp = hidden_states(given)
    hidden.requires_grad_()
    had = demands.had(settings, SETTINGS, DEFAULTS, NAME)
    if "loss_type" in had:
        had["loss_type"] = TOKEN_MEAN.get(had["loss_type"], had["loss_type"])
    loss = LigerFusedLinearGRPOLoss(**had, compiled=False, use_ref_model="ref_logp" in case.inputs)
    value, _ = _known(
        loss,
        hidden,
        WEIGHT,
        torch.zeros(given.shape, dtype=torch.int64),
        tensor(case.inputs["mask"]),
        tensor(case.inputs["advantages"]),
        old_per_token_logps=_same_policy(case, "old_logp", given, logp),
        ref_per_token_logps=_same_policy(case, "ref_logp", given, logp),
        **_counted(settings, case),
    )
    value.backward()
    return {"loss": value.detach().numpy(), "gradient": gradient_of(hidden).numpy()}


def _known(loss: LigerFusedLinearGRPOLoss, *arguments: Any, **options: Any) -> Any:
    """What the loss answers; a skip where this release does not know its `loss_type`."""
    try:
        return loss(*arguments, **options)
    except ValueError as error:
        if str(error).startswith("Unknown loss type"):
            raise Skip(f"{NAME} has no loss_type {loss.loss_type}") from error
        raise


def _same_policy(case: Case, name: str, given: Tensor, logp: Tensor) -> Tensor | None:
    """Log-probabilities that equal the current policy's come from the same head, and equal what it computes."""
    if name not in case.inputs:
        return None
    value = tensor(case.inputs[name], case.input_dtype)
    return torch.where(value == given, logp, value.float())


def _counted(settings: Settings, case: Case) -> dict[str, float]:
    """The tokens of the whole step, where they are given: no other mean takes a count."""
    normalizer = case.parameters.get("normalizer")
    if normalizer is None:
        return {}
    if settings.get("loss_type", DEFAULTS["loss_type"]) not in ("dapo", "cispo", "vespo"):
        raise Skip("Liger divides by the responses of the micro-batch; whoever calls it weighs micro-batches")
    if not COUNTS:
        raise Skip(f"{NAME} divides by the tokens of the micro-batch: it takes no num_items_in_batch")
    return {"num_items_in_batch": float(normalizer)}


def kl_penalty(case: Case) -> Mapping[str, Any]:
    """`k3_loss_fn`."""
    demands.estimator(case, "Liger", ("k3",))
    return torch_kl(case, lambda logp, ref: k3_loss_fn(ref.float(), logp.float()))


CAPABILITIES = offered(
    ("step", "kl_penalty"),
    "logp old_logp advantages mask ref_logp",
    "objective estimator normalizer",
    input_dtypes=INPUT_DTYPES,
)


def claims() -> TrainerTarget:
    """Every objective that a `loss_type` claims, in float32: Liger's log-probabilities have no other dtype."""
    versions = {"liger-kernel": RELEASE, "torch": torch.__version__}
    return TrainerTarget(versions, DIALECT, RELEASE, policy_loss, {"kl_penalty": kl_penalty}, CAPABILITIES)


def default() -> TrainerTarget:
    """`importance_sampling_level="sequence"`, all else as it comes: `loss_type="dapo"`, `beta=0.04`."""
    return claims().as_documented()
