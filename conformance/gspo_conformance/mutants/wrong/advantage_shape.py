"""Wrong shapes of advantages: one per token where one per response is due, and the other way round."""

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
