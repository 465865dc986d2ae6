"""GSPO as a policy loss of verl: `actor.policy_loss.loss_mode=gspo_core`. Written against verl 0.9.0 and 0.9.1.

verl finds this package's plug-in by itself and registers the name in every worker. An objective of
your own is registered by a module of yours that every worker imports (`VERL_USE_EXTERNAL_MODULES=mine`):

    from gspo_torch.integrations import verl

    verl.register(Objective.dapo().replace(aggregation="token_mean"), name="mine")
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gspo_core import Aggregation, Clip, Objective, Padded, aggregate
from gspo_core.sequences import bind_sequences
from gspo_core.validation import reads_values

from .. import PolicyLoss, policy_loss
from .absent import import_trainer

NAME = "gspo_core"
_PAPER = "seq-mean-token-mean"

PolicyLossFunction = Callable[..., tuple[Tensor, dict[str, Any]]]


def register(objective: Objective | None = None, *, name: str = NAME) -> PolicyLossFunction:
    """Registers `objective` with verl under `name`, and returns what verl will call.

    None is GSPO with the actor's `clip_ratio_low` and `clip_ratio_high`, in the form that allows an
    advantage per token (GSPO-token, the same where advantages do not vary within a response). It
    demands `loss_agg_mode=seq-mean-token-mean`, since the aggregation is part of GSPO and verl's own
    default, token-mean, is another.
    """
    algorithms = import_trainer("verl.trainer.ppo.core_algos", tested="verl 0.9.1", command="pip install verl==0.9.1")
    if objective is not None:
        _check(objective)
    return algorithms.register_policy_loss(name)(policy_loss_function(objective))


def policy_loss_function(objective: Objective | None = None) -> PolicyLossFunction:
    """The loss of `objective` (None as in `register`) with the arguments that verl passes."""

    def gspo_core_loss(
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = _PAPER,
        config: Any = None,
        rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        chosen = _paper(config, loss_agg_mode) if objective is None else objective
        mask = Padded(response_mask)
        normalizer = _normalizer(chosen.aggregation, config, log_prob)

        def found(values: Tensor) -> PolicyLoss:
            values = _per_response(values, mask) if chosen.per_sequence else values
            rest = {"advantages": values, "sequences": mask, "normalizer": normalizer}
            return policy_loss(chosen, logp=log_prob, old_logp=old_log_prob, **rest)

        # J is homogeneous in A, so a weight on the surrogate is a weight on the advantage; but a weight of 0 takes the
        # sign of A away, which says what is clipped (GSPO-METRIC-1).
        weighted = advantages if rollout_is_weights is None else advantages * rollout_is_weights
        loss, metrics = found(weighted)
        if rollout_is_weights is not None:
            with torch.no_grad():
                metrics = found(advantages).metrics
        kl = aggregate((old_log_prob - log_prob).detach(), mask, "token_mean")
        return loss, _named(metrics) | {"actor/ppo_kl": kl.item()}

    return gspo_core_loss


def _check(objective: Objective) -> None:
    """What verl hands over is enough for the objective."""
    if objective.penalty is not None or objective.correction:
        raise ValueError(
            "objective: expected no penalty and no correction, which verl applies itself (use_kl_loss, "
            f"rollout_correction), got {objective.penalty or objective.correction!r}"
        )
    if objective.aggregation.mode == "group_token_mean":
        raise ValueError(
            "objective: expected an aggregation without groups, which verl does not hand over, got group_token_mean"
        )


def _paper(config: Any, mode: str) -> Objective:
    if mode != _PAPER:
        raise ValueError(
            f"loss_agg_mode: expected {_PAPER!r} with loss_mode {NAME!r}, got {mode!r}; set actor.loss_agg_mode, or "
            f"register an objective of your own"
        )
    low, high = (getattr(config, f"clip_ratio_{side}", None) for side in ("low", "high"))
    both = getattr(config, "clip_ratio", None)
    clip = Clip(both if low is None else low, both if high is None else high)
    return Objective("gspo_token", clip, Aggregation(count="non_empty"))


def _normalizer(aggregation: Aggregation, config: Any, like: Tensor) -> Tensor | None:
    """M of the mini-batch over the data-parallel ranks, over which verl's engines average gradients; None where unknown."""
    info = getattr(config, "global_batch_info", None) or {}
    ranks = info.get("dp_size") or 1
    if aggregation.mode == "token_sum":
        count = 1
    else:
        count = info.get("batch_num_tokens" if aggregation.mode == "token_mean" else "global_batch_size")
    if count is None:
        if ranks > 1:
            raise ValueError(
                f"global_batch_info: expected the totals of {ranks} ranks for {aggregation.mode}, got {info!r}"
            )
        return None
    return torch.as_tensor(count, dtype=torch.float32, device=like.device) / ranks


def _per_response(advantages: Tensor, mask: Padded) -> Tensor:
    """[B, T] of verl to one per response, where they do not vary within one."""
    layout = bind_sequences(mask, tuple(advantages.shape), "advantages")
    found = layout.mean_tokens(advantages)
    if reads_values(advantages):
        off = (layout.clean(advantages - layout.spread(found)).abs() > 1e-5 * (1 + advantages.abs())).any()
        if bool(off):
            raise ValueError(
                "advantages: expected one value per response for a sequence-level objective, got some that vary"
            )
    return found


def _named(metrics: dict[str, Tensor]) -> dict[str, float]:
    """Under this package's names, and the clip fractions under verl's."""
    values = {name: value.item() for name, value in metrics.items()}
    return {f"gspo/{name}": value for name, value in values.items()} | {
        "actor/pg_clipfrac": values["clip_fraction"],
        "actor/pg_clipfrac_lower": values["clip_fraction_dual"],
    }
