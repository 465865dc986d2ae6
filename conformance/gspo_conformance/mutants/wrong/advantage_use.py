"""Wrong uses of finished advantages: in the wrong shape, scaled once more, without their sign."""

from __future__ import annotations

import numpy as np

from ...tensors import NumPyArray
from ..registry import mutant
from ..whole import Reference


@mutant(
    "advantage.summed-over-tokens",
    "GSPO-ADV-14",
    effect="each response is weighted by its length once more",
    seen=("areal-project/AReaL#501", "areal-project/AReaL#1346"),
)
class SummedOverTokens(Reference):
    """A response's advantage summed over its tokens: A |y|.

    Per-token advantages brought back to one number by `sum`.
    """

    def unit_advantages(self, advantages: NumPyArray) -> NumPyArray:
        found = super().unit_advantages(advantages)
        return self.sequences.spread(self.sum_tokens(found)) if self.per_sequence else found


@mutant(
    "advantage.token-averaged",
    "GSPO-ADV-14",
    effect="advantages that vary within a response are lost",
    seen=("areal-project/AReaL#501",),
)
class TokenAveraged(Reference):
    """Advantages per token averaged over the response: their variation is lost.

    GSPO-token with the advantages of GSPO; where GSPO is asked for, it goes unnoticed instead of being refused.
    """

    def unit_advantages(self, advantages: NumPyArray) -> NumPyArray:
        if advantages.shape != self.sequences.shape or advantages.size == self.sequences.number:
            return super().unit_advantages(advantages)
        return self.clean(self.sequences.spread(self.mean_tokens(self.number(advantages))))


@mutant("advantage.first-token", "GSPO-ADV-14", effect="only the first token's advantage trains")
class FirstToken(Reference):
    """The advantage of the first token for the whole response.

    `advantages[:, 0]`, on the way from a per-token tensor to one number per response.
    """

    def unit_advantages(self, advantages: NumPyArray) -> NumPyArray:
        if advantages.shape != self.sequences.shape or advantages.size == self.sequences.number:
            return super().unit_advantages(advantages)
        values, found = self.number(advantages), np.zeros(self.sequences.number)
        for i in range(self.sequences.number):
            found[i] = values[self.sequences.tokens(i)[:1]].sum()
        return self.clean(self.sequences.spread(found))


def _rescaled(centred: bool) -> type[Reference]:
    """A reference that divides the advantages of the batch by their standard deviation, with or without their mean."""

    class Rescaled(Reference):
        def unit_advantages(self, advantages: NumPyArray) -> NumPyArray:
            if advantages.ndim == len(self.sequences.shape) and advantages.size != self.sequences.number:
                known = np.asarray(advantages)[self.given.reshape(self.sequences.shape)]
            else:
                known = np.asarray(advantages)
            if known.size < 2:
                return super().unit_advantages(advantages)
            centre = known.mean() if centred else 0.0
            return super().unit_advantages((advantages - centre) / (known.std(ddof=1) + 1e-8))

    return Rescaled


@mutant(
    "advantage.normalised-in-loss",
    "GSPO-SURR-1",
    effect="what the groups measured is measured again: a batch of mostly good responses punishes some of them",
)
class NormalisedInLoss(_rescaled(centred=True)):
    """Finished advantages centred and divided once more inside the loss: their signs can change.

    `(a - a.mean()) / (a.std() + 1e-8)` at the top of a loss that came from PPO.
    """


@mutant("advantage.scaled-in-loss", "GSPO-SURR-1", effect="the learning rate depends on the batch")
class ScaledInLoss(_rescaled(centred=False)):
    """Finished advantages divided by the standard deviation of the batch inside the loss.

    `a / (a.std() + 1e-8)`: a guard against large rewards.
    """


@mutant("advantage.magnitude", "GSPO-SURR-1", effect="bad responses are reinforced like good ones")
class Magnitude(Reference):
    """|A| in place of A: bad responses are reinforced.

    A weight was meant, which is never negative.
    """

    def unit_advantages(self, advantages: NumPyArray) -> NumPyArray:
        return super().unit_advantages(np.abs(advantages))


@mutant("advantage.small-dropped", "GSPO-GRAD-1", effect="rewards on a small scale teach nothing")
class SmallDropped(Reference):
    """Advantages below 1e-5 taken for 0.

    `abs(a) < 1e-5` where `a == 0` is meant: which responses learn depends on the unit of the reward.
    """

    def unit_advantages(self, advantages: NumPyArray) -> NumPyArray:
        return super().unit_advantages(np.where(np.abs(advantages) < 1e-5, 0, advantages))
