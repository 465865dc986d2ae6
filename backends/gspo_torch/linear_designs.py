"""How the gradient of `linear_policy_loss` is formed: two designs, and the choice between them for each response.

A chunk costs one product forward (its logits) and two backward (hidden states, weight).

* Recompute: all logits once for log π, the coefficients d loss / d log π of the core, all logits again
  for the softmax of the tokens whose coefficient is not 0. Four products; asks nothing of the objective.
* Single pass: three products. A chunk of whole responses, or of tokens whose coefficients depend on
  nothing else, has its coefficients as soon as its logits are there, and so has the last chunk of a longer
  response, of which the others are recomputed. Or they add up their gradient without its coefficient, where
  it is one scalar, and scale it at the end; that takes a second `[V, D]` sum if the weight is trained, and
  the response pays its backward products even where the scalar turns out to be 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gspo_core import Objective, PolicyLoss
from gspo_core.gradient import step_gradient
from gspo_core.loss import step_loss
from gspo_core.step import Step, prepare

from .head import Gradients, Head, WeightSum
from .linear import Layer, full_precision
from .linear_parts import Parts, depends_on_token_alone, one_scalar_per_sequence
from .normalise import normalise_, slopes_

DESIGNS = ("auto", "recompute", "single_pass")
# By bandwidth and peak rate, clearing and adding a [V, D] sum takes as long as the product it saves for a thousand tokens
# on a GPU. On a CPU it takes less, and a shorter response saves little by it: most of its logits fit the last chunk.
_LONG = 1024


class FusedCall:
    """One call of `linear_policy_loss`: everything but the head's tensors. `arguments` are those of `policy_loss`."""

    def __init__(
        self, objective: Objective, tokens: Tensor, layer: Layer, design: str, arguments: dict[str, Any]
    ) -> None:
        self.objective, self.layer, self.design, self.arguments = objective, layer, design, arguments
        # Nothing that is checked or read before log π is known depends on it: 0 stands for it.
        blank = torch.zeros((), dtype=layer.dtype, device=tokens.device).expand(tokens.shape)
        self.step = self._prepare(blank)
        self.positions = self.step.layout.counted.reshape(-1).nonzero()[:, 0]
        self.tokens = tokens.reshape(-1)[self.positions].long()
        self.metrics: dict[str, Tensor] = {}
        if design == "single_pass":
            self._check_single_pass()

    @cached_property
    def parts(self) -> Parts:
        """The step in parts."""
        return Parts(self.step, self.positions, self.arguments["behavior_logp"])

    @property
    def by_token(self) -> bool:
        """Whether a chunk of any tokens has its coefficients at once."""
        return depends_on_token_alone(self.objective)

    @property
    def by_sequence(self) -> bool:
        """Whether a response's tokens share one coefficient."""
        per_token = tuple(self.arguments["advantages"].shape) != (self.step.layout.num_sequences,)
        return one_scalar_per_sequence(self.objective, per_token)

    def evaluate(self, head: Head) -> PolicyLoss:
        """The loss, forward only."""
        with full_precision(head.hidden):
            return step_loss(self._finished(head.normalised(self.positions, self.tokens).logp))

    def differentiate(self, gradients: Gradients) -> Tensor:
        """The loss; its gradients are left in `gradients`, its metrics in `metrics`."""
        with full_precision(gradients.head.hidden):
            if self.design == "recompute" or self.step.layout.context is not None:
                step = self._recompute(gradients)
            else:
                step = self._finished(_Stream(self, gradients).run())
            loss, self.metrics = step_loss(step)
        return loss

    def _recompute(self, gradients: Gradients) -> Step:
        found = gradients.head.normalised(self.positions, self.tokens)
        step = self._finished(found.logp)
        weights = step_gradient(step).reshape(-1)[self.positions]
        gradients.add_tokens(self.positions, self.tokens, found, weights)
        return step

    def _prepare(self, logp: Tensor) -> Step:
        return prepare(self.objective, logp=logp, **self.arguments)

    def _finished(self, logp: Tensor) -> Step:
        counted = self.step.layout.counted
        flat = torch.zeros(counted.numel(), dtype=logp.dtype, device=logp.device)
        return self._prepare(flat.index_copy_(0, self.positions, logp).view(counted.shape))

    def _check_single_pass(self) -> None:
        if self.step.layout.context is not None:
            raise ValueError("design: expected 'auto' or 'recompute' for sequences split over ranks, got 'single_pass'")
        longest, limit = self.parts.longest, self.layer.chunk_size
        if longest > limit and not (self.by_token or self.by_sequence):
            raise ValueError(
                f"design: expected 'auto' or 'recompute', since the coefficient of a token depends on its whole "
                f"response in more than one scalar and a response of {longest} tokens exceeds the chunk of {limit}, "
                f"got 'single_pass'"
            )


class _Stream:
    """Runs of tokens in order, each by the way that its response allows."""

    def __init__(self, call: FusedCall, gradients: Gradients) -> None:
        self.call, self.gradients, self.head = call, gradients, gradients.head
        self.logp = torch.empty(call.positions.shape[0], dtype=self.head.dtype, device=call.positions.device)

    def run(self) -> Tensor:
        """log π of the counted tokens; the gradients are complete after it."""
        for tokens in self._runs():
            self._way(tokens.stop - tokens.start)(tokens)
        return self.logp

    def _runs(self) -> Iterator[slice]:
        if self.call.by_token:
            return self.head.chunks(len(self.logp))
        return self.call.parts.runs(self.head.chunk_size)

    def _way(self, length: int) -> Callable[[slice], None]:
        if length <= self.head.chunk_size or not self.call.by_sequence:
            return self._scaled
        # The second sum is worth its room where it is smaller than the response's own logits.
        worth = not self.gradients.needs.weight or length >= max(_LONG, self.head.weight.shape[1])
        return self._unscaled if worth or self.call.design == "single_pass" else self._scaled

    def _scaled(self, tokens: slice) -> None:
        """Tokens whose coefficients are known when all their logits were made; of a long response all but the last chunk are made again."""
        last = slice(max(tokens.start, tokens.stop - self.head.chunk_size), tokens.stop)
        early = slice(tokens.start, last.start)
        positions, ids = self.call.positions, self.call.tokens
        before = self.head.normalised(positions[early], ids[early])
        rows = self.head.rows(positions[last])
        logits = self.head.logits(rows)
        found = normalise_(logits, ids[last])
        self.logp[early], self.logp[last] = before.logp, found.logp
        weights = self.call.parts.coefficients(tokens, self.logp[tokens])
        kept = weights[last.start - tokens.start :]
        for run in self.call.parts.moving(last, kept):
            self.gradients.add_weighted(
                logits[run], ids[last][run], found.at(run), kept[run], rows[run], positions[last][run]
            )
        if early.stop > early.start:
            self.gradients.add_tokens(positions[early], ids[early], before, weights[: -len(kept)])

    def _unscaled(self, tokens: slice) -> None:
        """A long response whose gradient is added up without its coefficient, which multiplies the sum at the end."""
        positions, ids = self.call.positions[tokens], self.call.tokens[tokens]
        if self.call.parts.never_moves(tokens):
            self.logp[tokens] = self.head.normalised(positions, ids).logp
            return
        self._sums.clear()
        for at in self.head.chunks(len(positions)):
            rows = self.head.rows(positions[at])
            logits = self.head.logits(rows)
            found = normalise_(logits, ids[at])
            self.logp[tokens][at] = found.logp
            slopes = slopes_(logits, ids[at], found, torch.full_like(found.logp, 1 / self.head.temperature))
            self.gradients.add(slopes, rows, positions[at], sums=self._sums)
        factor = self.call.parts.coefficients(tokens, self.logp[tokens])[0].to(self.head.dtype)
        self.gradients.sums.add_scaled(self._sums, factor)
        self.gradients.scale_hidden(positions, factor)

    @cached_property
    def _sums(self) -> WeightSum:
        return WeightSum(self.head, self.gradients.needs)
