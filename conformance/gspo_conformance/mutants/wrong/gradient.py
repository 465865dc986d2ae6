"""Right values, wrong gradients: what is detached, what is not, and what is missing from a closed form."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...tensors import NumPyArray
from ..registry import mutant
from ..surrogates import Fields, Outside
from ..tape import exp, stop, where
from ..whole import Reference


@mutant("gradient.gspo-token-attached", "GSPO-RATIO-3", effect="exactly twice the gradient where A is constant")
class TokenAttached(Reference):
    """GSPO-token with s not detached: exactly twice the gradient where A is the same for all tokens."""

    def gspo_token_unit(self) -> Any:
        return self.sequences.spread(self.sequence_log_ratio()) + (self.new - stop(self.new))


@mutant(
    "gradient.gspo-token-broadcast",
    "GSPO-GRAD-3",
    effect="every token gets the mean advantage of its response: what varies within it is lost",
    seen=("PrimeIntellect-ai/prime-rl#1123",),
)
class TokenBroadcast(Reference):
    """GSPO-token as s broadcast to the tokens, differentiable: the right value, the gradient of the mean advantage."""

    def gspo_token_unit(self) -> Any:
        return self.sequence_unit()


@mutant(
    "gradient.detached",
    "GSPO-GRAD-1",
    effect="nothing is learnt; the loss looks as it should",
    seen=("THUDM/slime@d3306394", "stateset/stateset-agents@a105d69", "PrimeIntellect-ai/prime-rl#1123"),
)
class Detached(Reference):
    """The ratio detached: no gradient at all, a loss that looks right.

    Scoring under `no_grad`, or a scalar written into a fresh tensor.
    """

    def policy_term(self) -> Any:
        return stop(super().policy_term())


@mutant(
    "gradient.old-attached",
    "GSPO-DATA-6",
    effect="ratio 1 and no gradient: nothing is learnt",
    seen=("Goekdeniz-Guelmez/mlx-lm-lora#55",),
)
class OldAttached(Reference):
    """The old log-probabilities recomputed in the graph: ratio 1, gradient 0."""

    def log_ratio(self) -> Any:
        return self.new - self.new


@mutant("gradient.no-length", "GSPO-GRAD-1", effect="gradients larger by |y| under a loss that is right")
class NoLength(Reference):
    """The factor 1/|y| missing from the gradient alone: the loss is right, the gradient too large by |y|.

    A ratio whose value is the mean and whose derivative is that of the sum.
    """

    def sequence_log_ratio(self) -> Any:
        mean, total = super().sequence_log_ratio(), self.sum_tokens(self.log_ratio())
        return stop(mean) + (total - stop(total))


@mutant("gradient.no-ratio", "GSPO-GRAD-1", effect="off-policy the gradient is not importance-weighted")
class NoRatio(Reference):
    """The factor s missing from the gradient: REINFORCE inside the range.

    A hand-written backward pass.
    """

    def held(self, open_: NumPyArray, ratio: Any, outside: Outside, clip: Fields) -> Any:
        found = super().held(open_, ratio, outside, clip)
        return stop(found) + where(open_, (found - stop(found)) / np.where(open_, stop(ratio), 1.0), 0.0)


@mutant(
    "gradient.straight-through-clip", "GSPO-GRAD-2", effect="clipped responses go on training: there is no trust region"
)
class StraightThrough(Reference):
    """Clipped units keep a gradient: the bound has the value, the ratio the derivative.

    A straight-through estimator around the clip.
    """

    def clip_value(self, log_ratio: Any, advantages: Any, clip: Fields) -> Any:
        ratio = self.ratio(where(stop(advantages) != 0, log_ratio, 0.0)) * advantages
        return stop(super().clip_value(log_ratio, advantages, clip)) + (ratio - stop(ratio))


@mutant(
    "gradient.clipped-at-bound", "GSPO-GRAD-2", effect="clipped responses keep pulling at the strength of the bound"
)
class BoundGradient(Reference):
    """Clipped units with the gradient of their bound: the clipped ratio times A, at every token.

    A closed form with the value in the place of the slope.
    """

    def clip_value(self, log_ratio: Any, advantages: Any, clip: Fields) -> Any:
        found = super().clip_value(log_ratio, advantages, clip)
        return stop(found) * (1 + (log_ratio - stop(log_ratio)))


@mutant(
    "gradient.masked-leak",
    "GSPO-GRAD-2",
    effect="prompt, tools and padding are trained with the response's coefficient",
)
class MaskedLeak(Reference):
    """The coefficient of a response at every position of its row, counted or not.

    The per-sequence factor broadcast and returned without the mask.
    """

    def gradient(self, loss: Any) -> NumPyArray:
        found = super().gradient(loss)
        for start, end in self.sequences.spans:
            counted = self.sequences.counted[start:end]
            if counted.any():
                found[start:end] = np.where(counted, found[start:end], found[start:end][counted][0])
        return found


@mutant(
    "gradient.doubled",
    "GSPO-GRAD-1",
    effect="twice the learning rate",
    seen=("THUDM/slime@d3306394", "NovaSky-AI/SkyRL#1420"),
)
class Doubled(Reference):
    """Twice the gradient under a right loss: counted once on each of two ranks, and summed.

    Or, in GSPO-token's form, s not detached: each token then has the gradient of s and that of its own ratio.
    """

    def gradient(self, loss: Any) -> NumPyArray:
        return super().gradient(loss) * 2.0


@mutant("gradient.negated", "GSPO-GRAD-1", effect="the policy is trained to fail, under a loss that is right")
class Negated(Reference):
    """The gradient with the wrong sign under a right loss."""

    def gradient(self, loss: Any) -> NumPyArray:
        return -super().gradient(loss)


@mutant("gradient.first-token", "GSPO-GRAD-1", effect="one token of each response trains")
class FirstToken(Reference):
    """The whole gradient of a response on its first token: sums are right, places are not.

    A gather that scatters back to one index.
    """

    def gradient(self, loss: Any) -> NumPyArray:
        found = super().gradient(loss)
        for i in range(self.sequences.number):
            at = self.sequences.tokens(i)
            total = found[at].sum()
            found[at] = 0.0
            found[at[:1]] = total
        return found


@mutant("gradient.probability-space", "GSPO-GRAD-1", effect="unlikely tokens hardly train")
class ProbabilitySpace(Reference):
    """The gradient with respect to the probability instead of its logarithm."""

    def gradient(self, loss: Any) -> NumPyArray:
        return super().gradient(loss) / np.where(self.sequences.counted, exp(stop(self.new)), 1.0)
