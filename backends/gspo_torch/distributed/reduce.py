"""The loss of a step whose responses are spread over micro-batches and ranks, as one call on their union gives it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.distributed.tensor import DTensor

from gspo_core import Objective, Packed, Padded
from gspo_core.aggregation import Aggregation, check_groups, given_count
from gspo_core.sequences import Layout, bind_sequences
from gspo_core.step import Step
from gspo_core.validation import check_array, check_floating, check_number, reads_values

from ..observers import OBSERVERS, tell
from ..results import PolicyLoss
from .dtensor import localise
from .ranks import check_disjoint, data_group
from .reports import Report, result_of
from .share import share
from .union import Part, normalizer_of, same, totals_of, weights_of


class Union:
    """One optimiser step: its normaliser first, then the loss of each micro-batch, then the result of the whole.

        union = distributed.Union(objective, [(sequences, groups), ...], data=dp, world_scale=dp.size())
        for batch in micro_batches:
            union.loss(logp=..., old_logp=..., advantages=..., sequences=..., groups=...).backward()
        out = union.result()

    Making it and `result` are the only exchanges over `data`: every rank takes part in both, with as
    many micro-batches as it has, or none. Clauses GSPO-DIST-1, GSPO-DIST-2, GSPO-DIST-4.

    Args:
        objective: an `Objective`.
        parts: the `sequences` of each of this rank's micro-batches, or pairs of `sequences` and `groups`.
        data: the ranks that hold other responses, a `ProcessGroup` or a one-dimensional `DeviceMesh`. None: all, which
            without `torch.distributed.init_process_group` is this process.
        world_scale: the number of ranks over which the framework averages gradients (DDP, FSDP: all that
            share the parameters, context-parallel ranks too), or 1 where it adds them.
        normalizer: replaces M.
        device: where the exchanged numbers live; where the parts do, or the default device, where None.
    """

    # Ranks wait for each other and sizes are read on the host, so callers' graphs break here, and once.
    @_disable_dynamo
    def __init__(
        self,
        objective: Objective,
        parts: Iterable[Any],
        *,
        world_scale: float,
        data: Any = None,
        normalizer: Any = None,
        device: Any = None,
    ) -> None:
        check_number("world_scale", world_scale, low=0.0, strict=True)
        self._objective, self._scale = objective, world_scale
        self._data = data_group(data)
        self._reports: list[Report] = []
        self._parts = found = [_part(part, self._data) for part in _listed(parts)]
        place = device if device is not None or not found else found[0].lengths.device
        self._like = torch.zeros((), dtype=torch.float32, device=place)
        self._given = self._checked(normalizer)
        self._totals = totals_of(found, self._aggregations, self._data, self._like)

    @property
    def normalizer(self) -> Tensor:
        """M of the union."""
        found = normalizer_of(self._objective.aggregation, self._totals) if self._given is None else self._given
        return found.to(self._like)

    @_disable_dynamo
    def loss(
        self,
        *,
        logp: Tensor,
        sequences: Any,
        old_logp: Tensor | None = None,
        advantages: Tensor | None = None,
        ref_logp: Tensor | None = None,
        behavior_logp: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> Tensor:
        """This rank's share of the union's loss, times `world_scale`, to be differentiated.

        Arguments as in `policy_loss`, without `normalizer`. `sequences` None is a micro-batch without
        responses: `logp`, of any shape, gets a gradient of 0, so that this rank takes part in the
        framework's own exchanges; it alone needs no `old_logp` and no `advantages`.
        """
        check_floating("logp", logp)
        if torch.float64 in (logp.dtype, getattr(old_logp, "dtype", None)):
            self._like = self._like.double()
        if sequences is None:
            return torch.where(torch.zeros_like(logp, dtype=torch.bool), logp, 0.0).sum()
        given = {"logp": logp, "old_logp": old_logp, "advantages": advantages, "sequences": sequences}
        given |= {"ref_logp": ref_logp, "behavior_logp": behavior_logp, "groups": groups}
        weigh = partial(self._weigh, groups=groups)
        loss, report = share(self._objective, weigh, given)
        self._reports.append(report)
        if OBSERVERS:
            tell(self._objective, logp, given | {"normalizer": self.normalizer}, PolicyLoss(loss, {}))
        return loss * self._scale

    @_disable_dynamo
    def result(self) -> PolicyLoss:
        """The loss and the metrics of the union of what `loss` was given on all ranks; no gradient."""
        if self._given is None and len(self._reports) != len(self._parts):
            raise RuntimeError(
                f"result: expected one loss of each of the {len(self._parts)} parts that the union was made with, got "
                f"{len(self._reports)} losses"
            )
        return result_of(self._reports, self._like, self._data)

    def _weigh(self, step: Step, groups: Tensor | None) -> Step:
        part = Part(step.weights.lengths, groups)
        self._check_counted(part)
        weights = [weights_of(aggregation, part, self._totals) for aggregation in self._aggregations]
        if self._given is not None:
            weights[0] = weights[0]._replace(count=self._given.to(part.lengths))
        return step.replace(weights=weights[0], penalty_weights=weights[-1])

    @property
    def _aggregations(self) -> list[Aggregation]:
        return aggregations_of(self._objective)

    def _checked(self, normalizer: Any) -> Tensor | None:
        if normalizer is None and all(aggregation.count != "given" for aggregation in self._aggregations):
            return None
        lengths = torch.cat([self._like.new_zeros(0), *(part.lengths for part in self._parts)])
        return given_count(normalizer, self._like.double(), lengths)

    def _check_counted(self, part: Part) -> None:
        """One of the parts that the union was made with, wherever ω or M is made of those."""
        by_group = any(aggregation.mode == "group_token_mean" for aggregation in self._aggregations)
        needed = self._given is None or by_group or len(self._aggregations) > 1
        if needed and reads_values(part.lengths) and not any(same(part, one, by_group) for one in self._parts):
            raise ValueError(
                f"sequences, groups: expected those of one of the {len(self._parts)} parts that the union was made with, "
                f"got {part.lengths.shape[0]} responses of {int(part.lengths.sum())} tokens that are none of them"
            )


@_disable_dynamo
def reduce(
    objective: Objective,
    *,
    logp: Tensor,
    old_logp: Tensor | None,
    advantages: Tensor | None,
    sequences: Any,
    world_scale: float,
    data: Any = None,
    ref_logp: Tensor | None = None,
    behavior_logp: Tensor | None = None,
    groups: Tensor | None = None,
    normalizer: Any = None,
) -> PolicyLoss:
    """The loss and metrics of the union of every rank's responses; each rank differentiates its own share.

    Clauses GSPO-DIST-1 to GSPO-DIST-4. `loss` has the same value on every rank; its gradient on
    this one is `world_scale` times the derivative of the union's loss by this rank's `logp`. Ranks may
    hold different numbers of responses; one without any passes `sequences=None`.

    Args: as in `policy_loss`, and `data` and `world_scale` as in `Union`. `sequences` with a `context`
    are split over the ranks of that group besides. `logp` may be a `[B, T]` DTensor, and then every
    array is: Shard(0) takes the place of `data`, Shard(1) that of `context`.
    """
    arguments = {"logp": logp, "old_logp": old_logp, "advantages": advantages, "sequences": sequences}
    arguments |= {"ref_logp": ref_logp, "behavior_logp": behavior_logp, "groups": groups}
    check_array("logp", logp)
    if isinstance(logp, DTensor):
        arguments, data = localise(arguments, data)
        sequences, groups = arguments["sequences"], arguments["groups"]
    union = Union(
        objective,
        [] if sequences is None else [(sequences, groups)],
        world_scale=world_scale,
        data=data,
        normalizer=normalizer,
        device=logp.device,
    )
    own = union.loss(**arguments)
    loss, metrics = union.result()
    return PolicyLoss(_WithValue.apply(own, loss), metrics)


class _WithValue(torch.autograd.Function):
    """The value of one scalar and the derivative of another."""

    @staticmethod
    def forward(_ctx: Any, _share: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def aggregations_of(objective: Objective) -> list[Aggregation]:
    """Of the surrogate, and of the penalty where it has its own."""
    if not isinstance(objective, Objective):
        raise TypeError(f"objective: expected an Objective, got {type(objective).__name__}")
    own = None if objective.penalty is None else objective.penalty.aggregation
    return [objective.aggregation] if own in (None, objective.aggregation) else [objective.aggregation, own]


def _listed(parts: Any) -> Iterable[Any]:
    """One entry for each micro-batch; a mask alone would be taken for its rows."""
    if isinstance(parts, (Tensor, Padded, Packed)):
        raise TypeError(f"parts: expected a list, the sequences of each micro-batch, got one {type(parts).__name__}")
    return parts


def _part(part: Any, data: Any) -> Part:
    sequences, groups = part if isinstance(part, tuple) and len(part) == 2 else (part, None)
    layout = _bound(sequences)
    check_disjoint(data, layout.context)
    check_groups(groups, layout)
    return Part(layout.lengths(torch.float32), groups)


def _bound(sequences: Any) -> Layout:
    """The layout of sequences without their tokens, enough to count them."""
    if isinstance(sequences, Packed):
        size = sequences.mask.shape[0] if sequences.mask is not None else int(sequences.offsets[-1])
        return sequences.bind((size,))
    mask = sequences.mask if isinstance(sequences, Padded) else sequences
    check_array("sequences", mask)
    return bind_sequences(sequences, tuple(mask.shape))
