"""`record`: verl's policy loss, whichever is registered, writing a trace for `gspo audit`. Written against verl 0.9.0 and 0.9.1.

A module that every worker imports (`VERL_USE_EXTERNAL_MODULES=mine`) wraps the loss mode that the run uses:

    from gspo_torch.integrations import verl_record

    verl_record.record("gspo", "trace", every=10, steps_per_rollout=4)

What is recorded is what verl's own function was given and what it returned, and, as the run's claim, the configuration
that it was called with. Rewards and groups never reach it, so advantages are taken as they come; a KL term is
added elsewhere, and not part of the claim; with one, gradients are not recorded.
"""

from __future__ import annotations

import atexit
import functools
import inspect
import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from gspo_core.recording import guarded

from ..record import TorchRecorder
from .absent import import_trainer

_ACTOR = "actor_rollout_ref.actor."
_ARGUMENTS = ("loss_agg_mode", "config", "rollout_is_weights")
_CLAIMED = (
    "clip_ratio",
    "clip_ratio_low",
    "clip_ratio_high",
    "clip_ratio_c",
    "tau_pos",
    "tau_neg",
)


def record(
    name: str,
    path: str | os.PathLike[str],
    *,
    settings: Mapping[str, Any] | None = None,
    steps_per_rollout: int | None = None,
    **options: Any,
) -> TorchRecorder:
    """Wraps the policy loss that verl has registered under `name`; `options` as of `gspo_torch.record`.

    `settings`: flat, keys as verl spells them; they win over what the actor's configuration says at the first call.
    `steps_per_rollout`: `data.train_batch_size / ppo_mini_batch_size * ppo_epochs`, which no worker is told: in the first
    of them the policies are the same, so stale or mismatched log-probabilities show. The recorder closes when the
    process ends.
    """
    algorithms = import_trainer("verl.trainer.ppo.core_algos", tested="verl 0.9.1", command="pip install verl==0.9.1")
    version = import_trainer("verl", tested="verl 0.9.1", command="pip install verl==0.9.1").__version__
    described = {
        "name": "verl",
        "version": version,
        "settings": {_ACTOR + "policy_loss.loss_mode": name} | dict(settings or {}),
    }
    claimed = {"trainer": described, "micro_batches": "sum", "rank_losses": "mean"}
    recorder = VerlRecorder(path, steps_per_rollout=steps_per_rollout, **claimed, **_ranked(options))
    algorithms.register_policy_loss(name)(recorder.wrapped(algorithms.get_policy_loss_fn(name)))
    register_optimizer_step_post_hook(lambda *_: recorder.advance())
    atexit.register(recorder.close)
    return recorder


def _ranked(options: dict[str, Any]) -> dict[str, Any]:
    """With this process's rank where a launcher says it, since no process group exists yet."""
    rank, ranks = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    known = {} if rank is None else {"rank": int(rank)}
    return known | ({} if ranks is None else {"ranks": int(ranks)}) | options


class VerlRecorder(TorchRecorder):
    """Wraps a function with the arguments that verl passes; a rollout begins after every `steps_per_rollout` steps."""

    def __init__(self, path: str | os.PathLike[str], *, steps_per_rollout: int | None = None, **options: Any) -> None:
        if steps_per_rollout is not None and (not isinstance(steps_per_rollout, int) or steps_per_rollout < 1):
            raise ValueError(f"steps_per_rollout: expected a positive integer, got {steps_per_rollout!r}")
        super().__init__(path, **options)
        self._steps_per_rollout = steps_per_rollout
        if steps_per_rollout is not None:
            self.rollout()

    def advance(self) -> None:
        """The optimiser step ends, and with the last one its rollout."""
        super().advance()
        if self.minibatch == self._steps_per_rollout:
            self.rollout()

    def wrapped(self, function: Any) -> Any:
        """`function`, with every call recorded."""
        default = inspect.signature(function).parameters.get("loss_agg_mode")
        own = {} if default is None or default.default is default.empty else {"loss_agg_mode": default.default}

        @functools.wraps(function)
        def loss(
            old_log_prob: Tensor, log_prob: Tensor, advantages: Tensor, response_mask: Tensor, *rest: Any, **named: Any
        ) -> Any:
            found = function(old_log_prob, log_prob, advantages, response_mask, *rest, **named)
            given = own | dict(zip(_ARGUMENTS, rest, strict=False)) | named
            self.called(found, old_log_prob, log_prob, advantages, response_mask, given)
            return found

        return loss

    @guarded
    def called(
        self, found: Any, old: Tensor, logp: Tensor, advantages: Tensor, mask: Tensor, given: Mapping[str, Any]
    ) -> None:
        """A call of the loss. A weight for the sampler multiplies the advantage, since J is homogeneous in it."""
        self._claim_of_config(given, mask)
        weights = given.get("rollout_is_weights")
        self.part(
            loss=found[0],
            metrics={name: value for name, value in found[1].items() if isinstance(value, (int, float, Tensor))},
            normalizer=_normalizer(given, self._aggregated(given)),
            logp=logp,
            old_logp=old,
            mask=mask,
            advantages=advantages if weights is None else advantages * weights,
        )
        # What arrives at logp where verl adds a KL term behind this call is the gradient of both.
        alone = not getattr(given.get("config"), "use_kl_loss", False)
        if self.gradient and self.recording and logp.requires_grad and alone:
            self.watch(logp)

    def _aggregated(self, given: Mapping[str, Any]) -> str:
        """How the function aggregates: some take no notice of `loss_agg_mode`, and `geo_mean` none of the mini-batch either."""
        trainer = self.run["trainer"]
        mode = trainer["settings"].get(_ACTOR + "policy_loss.loss_mode")
        if mode == "geo_mean":
            return "own"
        fixed = mode == "sapo" or (mode == "gspo" and trainer.get("version") == "0.9.0")
        return "seq-mean-token-mean" if fixed else given.get("loss_agg_mode", "token-mean")

    def _claim_of_config(self, given: Mapping[str, Any], mask: Tensor) -> None:
        """The settings of the actor that decide its loss, as it was called with them."""
        settings, config = self.run["trainer"]["settings"], given.get("config")
        for name in _CLAIMED:
            value = getattr(config, name, None)
            if isinstance(value, (int, float)):
                settings.setdefault(_ACTOR + name, value)
        totals = getattr(config, "global_batch_info", None) or {}
        # What verl's own function divides by where nobody says: the width of the batch.
        settings.setdefault(_ACTOR + "loss_scale_factor", float(totals.get("loss_scale_factor") or mask.shape[-1]))
        settings.setdefault(_ACTOR + "loss_agg_mode", given.get("loss_agg_mode", "token-mean"))
        settings[_ACTOR + "use_kl_loss"] = False


def _normalizer(given: Mapping[str, Any], mode: str) -> float | None:
    """The M of verl's `agg_loss` over the mini-batch, per rank; None where it is the micro-batch's own."""
    totals = getattr(given.get("config"), "global_batch_info", None) or {}
    if mode == "own":
        return None
    if mode == "token-sum":
        return 1.0 / (totals.get("dp_size") or 1)
    count = totals.get("batch_num_tokens" if mode == "token-mean" else "global_batch_size")
    return None if count is None else float(count) / (totals.get("dp_size") or 1)
