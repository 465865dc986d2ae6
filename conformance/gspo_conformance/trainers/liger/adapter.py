"""`LigerFusedLinearGRPOLoss`, from hidden states to the loss, and its KL estimate; no compilation, which changes no number."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss
from liger_kernel.chunked_loss.grpo_loss import k3_loss_fn
from torch import Tensor

from ...target import INPUT_DTYPES, Case, Skip
from .. import demands
from ..adapter import Settings, TrainerTarget, offered, tensor, torch_kl
from .dialect import DEFAULTS, DIALECT
from .head import WEIGHT, gradient_of, hidden_states

RELEASE = version("liger-kernel")


def policy_loss(settings: Settings, case: Case) -> Mapping[str, Any]:
    """The loss of one micro-batch and its gradient; a reference where the case has one, else the policy is its own."""
    given = tensor(case.inputs["logp"], "float32")
    hidden, logp = hidden_states(given)
    hidden.requires_grad_()
    loss = LigerFusedLinearGRPOLoss(**settings, compiled=False, use_ref_model="ref_logp" in case.inputs)
    value, _ = loss(
        hidden,
        WEIGHT,
        torch.zeros(given.shape, dtype=torch.int64),
        tensor(case.inputs["mask"]),
        tensor(case.inputs["advantages"]),
        old_per_token_logps=_same_policy(case, "old_logp", given, logp),
        ref_per_token_logps=_same_policy(case, "ref_logp", given, logp),
        num_items_in_batch=_counted(settings, case),
    )
    value.backward()
    return {"loss": value.detach().numpy(), "gradient": gradient_of(hidden).numpy()}


def _same_policy(case: Case, name: str, given: Tensor, logp: Tensor) -> Tensor | None:
    """Log-probabilities that equal the current policy's come from the same head, and equal what it computes."""
    if name not in case.inputs:
        return None
    value = tensor(case.inputs[name], case.input_dtype)
    return torch.where(value == given, logp, value.float())


def _counted(settings: Settings, case: Case) -> float | None:
    """The tokens of the whole step, where one is given: no other mean takes a count."""
    normalizer = case.parameters.get("normalizer")
    if normalizer is not None and settings.get("loss_type", DEFAULTS["loss_type"]) not in ("dapo", "cispo", "vespo"):
        raise Skip("Liger divides by the responses of the micro-batch; whoever calls it weighs micro-batches")
    return None if normalizer is None else float(normalizer)


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
