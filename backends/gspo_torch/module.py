"""The loss as a module, for code that composes modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from gspo_core import Clip, Objective
from gspo_core.objective import PAPER_CLIP
from gspo_core.sequences import Sequences

from .loss import policy_loss
from .results import PolicyLoss


class GSPOLoss(nn.Module):
    """`policy_loss` of one objective: GSPO with the paper's clip range, or with `clip`, or any other `objective`.

    It has no parameters, no buffers and no state.

    >>> GSPOLoss()
    GSPOLoss(ratio='sequence', surrogate=Clip(low=0.0003, high=0.0004, dual=None), aggregation='sequence_mean_token_mean')
    """

    def __init__(self, objective: Objective | None = None, *, clip: Clip | None = None) -> None:
        super().__init__()
        if objective is not None and clip is not None:
            raise ValueError("clip: expected None, since the objective has its own, got both")
        if objective is not None and not isinstance(objective, Objective):
            raise TypeError(f"objective: expected an Objective, got {type(objective).__name__}")
        self.objective = objective or Objective.gspo(clip or PAPER_CLIP)

    def forward(
        self,
        logp: Tensor,
        old_logp: Tensor,
        advantages: Tensor,
        sequences: Sequences | Tensor,
        *,
        ref_logp: Tensor | None = None,
        behavior_logp: Tensor | None = None,
        groups: Tensor | None = None,
        normalizer: Any = None,
    ) -> PolicyLoss:
        """`policy_loss` of these arguments."""
        return policy_loss(
            self.objective,
            logp=logp,
            old_logp=old_logp,
            advantages=advantages,
            sequences=sequences,
            ref_logp=ref_logp,
            behavior_logp=behavior_logp,
            groups=groups,
            normalizer=normalizer,
        )

    if TYPE_CHECKING:
        __call__: Callable[..., PolicyLoss]

    def extra_repr(self) -> str:
        """The axes of the objective; those that the paper leaves out only where they are used."""
        objective, shown = self.objective, ["ratio", "surrogate"]
        shown += [name for name in ("penalty", "correction", "log_ratio_cap") if getattr(objective, name)]
        parts = [f"{name}={getattr(objective, name)!r}" for name in shown]
        return ", ".join([*parts, f"aggregation={objective.aggregation.mode!r}"])
