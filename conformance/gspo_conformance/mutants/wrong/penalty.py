"""Wrong KL penalties: estimator, sign, gradient, place and weight."""

from __future__ import annotations

from typing import Any

from .. import tape
from ..registry import mutant
from ..surrogates import Fields
from ..tape import exp, stop, where
from ..whole import Reference


def _estimator(wrong: dict[str, str]) -> type[Reference]:
    """A reference that takes one estimator for another."""

    class OtherEstimator(Reference):
        def estimate(self, estimator: str, z: Any) -> Any:
            return super().estimate(wrong.get(estimator, estimator), z)

    return OtherEstimator


@mutant(
    "penalty.k1-for-k3",
    "GSPO-KL-3",
    effect="as a loss k1 has the gradient 1 whatever the distance, and 0 in expectation: nothing is regularised",
    seen=("arXiv:2506.09477",),
)
class K1ForK3(_estimator({"k3": "k1", "k3_plus": "k1"})):
    """k1 where k3 is asked for: in a loss its gradient is 0 in expectation."""


@mutant(
    "penalty.k2-for-k3",
    "GSPO-KL-3",
    effect="far from the reference the pull is weaker on one side, stronger on the other",
)
class K2ForK3(_estimator({"k3": "k2"})):
    """k2 where k3 is asked for."""


@mutant(
    "penalty.k3-for-k2",
    "GSPO-KL-2",
    effect="the gradient is that of the forward KL, and explodes where the policy has left the reference below",
    seen=("NVIDIA-NeMo/RL#2506", "arXiv:2506.09477"),
)
class K3ForK2(_estimator({"k2": "k3"})):
    """k3 where k2 is asked for: its gradient is that of the forward KL."""


@mutant("penalty.k3-for-k1", "GSPO-KL-1", effect="an option does nothing")
class K3ForK1(_estimator({"k1": "k3", "abs": "k3"})):
    """k3 where k1 or |z| is asked for: the option is ignored."""


@mutant(
    "penalty.plus-ignored",
    "GSPO-KL-4",
    effect="the straight-through gradient that was asked for is not there",
    seen=("verl-project/verl#6058",),
)
class PlusIgnored(_estimator({"k3_plus": "k3"})):
    """The suffix of k3+ ignored: value and gradient of k3."""


@mutant("penalty.plus-is-k2", "GSPO-KL-4", effect="the logged divergence is another one")
class PlusIsK2(_estimator({"k3_plus": "k2"})):
    """k3+ with the value of k2 as well: the straight-through trick is left out."""


@mutant("penalty.k3-reversed", "GSPO-KL-3", effect="near the reference the same, far from it the other divergence")
class Reversed(Reference):
    """z with the wrong sign: e^z - z - 1, the estimator of the opposite divergence."""

    def deviation(self) -> Any:
        return -super().deviation()


@mutant("penalty.abs-without-kink", "GSPO-KL-1", effect="on-policy tokens are pushed")
class AbsGradient(Reference):
    """|z| with gradient 1 at z = 0, where it is 0 by symmetry."""

    def estimate(self, estimator: str, z: Any) -> Any:
        return where(stop(z) >= 0, z, -z) if estimator == "abs" else super().estimate(estimator, z)


@mutant(
    "penalty.subtracted",
    "GSPO-KL-6",
    effect="the policy is pushed away from the reference",
    seen=("verl-project/verl@a65c9157",),
)
class Subtracted(Reference):
    """The penalty subtracted from the loss: distance is rewarded."""

    def penalty_term(self) -> Any:
        return -super().penalty_term()


@mutant("penalty.ignored", "GSPO-KL-6", effect="nothing holds the policy near the reference")
class Ignored(Reference):
    """No penalty although the objective has one.

    One trainer leaves it out under its GSPO loss, its coefficient 0.1 by default.
    """

    def penalty_term(self) -> Any:
        return 0.0


@mutant("penalty.unasked", "GSPO-KL-6", effect="the step is pulled back to the policy that sampled")
class Unasked(Reference):
    """A penalty of 0.04 k3 towards the old policy although the objective has none.

    The default coefficient of a trainer, with the old policy where no reference is loaded.
    """

    def penalty_term(self) -> Any:
        if self.objective["penalty"] is not None:
            return super().penalty_term()
        return self.aggregate(self.estimate("k3", self.log_ratio()), self.objective["aggregation"]) * 0.04


@mutant(
    "penalty.detached",
    "GSPO-KL-6",
    effect="the penalty is in the loss and not in the gradient",
    seen=("NovaSky-AI/SkyRL#1353",),
)
class Detached(Reference):
    """The penalty without a gradient: logged, but not acting.

    Computed under `no_grad`.
    """

    def penalty_term(self) -> Any:
        return stop(super().penalty_term())


@mutant("penalty.twice", "GSPO-KL-6", effect="twice the coefficient that was asked for")
class Twice(Reference):
    """Counted twice: in the token loss and once more outside."""

    def penalty_term(self) -> Any:
        return super().penalty_term() * 2.0


@mutant(
    "penalty.gated",
    "GSPO-KL-6",
    effect="where the policy has moved furthest nothing pulls it back",
    seen=("THUDM/slime#1372",),
)
class Gated(Reference):
    """The penalty inside the clip: clipped units have none."""

    def divergence(self, penalty: Fields) -> Any:
        surrogate = self.objective["surrogate"]
        found = super().divergence(penalty)
        return where(self.clipped().any, 0.0, found) if surrogate["kind"] == "clip" else found


@mutant("penalty.times-advantage", "GSPO-KL-6", effect="bad responses are paid for leaving the reference")
class TimesAdvantage(Reference):
    """The penalty inside the advantage: multiplied by A."""

    def divergence(self, penalty: Fields) -> Any:
        return super().divergence(penalty) * self.advantages


@mutant("penalty.times-length", "GSPO-KL-6", effect="the coefficient grows with the length")
class TimesLength(Reference):
    """The penalty of a response multiplied by its length: broadcast to every token and summed."""

    def divergence(self, penalty: Fields) -> Any:
        return super().divergence(penalty) * self.sequences.spread(self.lengths())


@mutant("penalty.of-mean", "GSPO-KL-6", effect="tokens that moved in opposite directions cancel: no penalty")
class OfMean(Reference):
    """The estimator of the mean log-ratio of a response instead of the mean of the estimators: opposite moves cancel."""

    def deviation(self) -> Any:
        found = super().deviation()
        return self.sequences.spread(self.mean_tokens(found)) if hasattr(self, "leaf") else found


@mutant("penalty.of-sum", "GSPO-KL-6", effect="e^{-z} of a whole response: the penalty explodes with the length")
class OfSum(Reference):
    """The estimator of the summed log-ratio of a response: it explodes with the length."""

    def deviation(self) -> Any:
        found = super().deviation()
        return self.sequences.spread(self.sum_tokens(found)) if hasattr(self, "leaf") else found


@mutant(
    "penalty.importance-ignored", "GSPO-KL-5", effect="off-policy the estimate is biased", seen=("NVIDIA-NeMo/RL#2506",)
)
class ImportanceIgnored(Reference):
    """The importance weight of the penalty left out."""

    def importance(self, kind: str | None) -> Any:
        return 1.0


@mutant("penalty.importance-sequence", "GSPO-KL-5", effect="tokens of one response share a weight that is not theirs")
class ImportanceSequence(Reference):
    """The sequence ratio as the importance of each token, where the token ratio is asked for.

    What happens by itself when the penalty reuses the ratio of the policy term.
    """

    def importance(self, kind: str | None) -> Any:
        return super().importance("sequence" if kind else None)


@mutant("penalty.importance-token", "GSPO-KL-5", effect="noise that the sequence ratio averages out")
class ImportanceToken(Reference):
    """The token ratio as the importance, where the sequence ratio is asked for."""

    def importance(self, kind: str | None) -> Any:
        return super().importance("token" if kind else None)


@mutant(
    "penalty.importance-detached",
    "GSPO-KL-5",
    effect="half of the gradient is missing; k3's weight is what made it unbiased",
)
class ImportanceDetached(Reference):
    """The importance weight of the penalty detached: half of the gradient is missing."""

    def importance(self, kind: str | None) -> Any:
        return stop(super().importance(kind))


@mutant("penalty.importance-anyway", "GSPO-KL-5", effect="the penalty fades where the policy became less likely")
class ImportanceAnyway(Reference):
    """The penalty weighted by the ratio although none is asked for.

    A default that was switched on.
    """

    def importance(self, kind: str | None) -> Any:
        return super().importance(kind or "token")


@mutant("penalty.token-mean", "GSPO-KL-6", effect="long responses are held more tightly than short ones")
class TokenMean(Reference):
    """The penalty averaged over all tokens whatever the objective's aggregation: long responses weigh more.

    A default argument of the reduction.
    """

    def penalty_value(self, penalty: Fields) -> Any:
        given, self.normalizer = self.normalizer, None
        found = self.aggregate(self.divergence(penalty), {"mode": "token_mean", "count": "all", "constant": 1.0})
        self.normalizer = given
        return found


@mutant("penalty.own-aggregation-ignored", "GSPO-KL-6", effect="an option does nothing")
class OwnIgnored(Reference):
    """The penalty's own aggregation ignored: the objective's is used."""

    def penalty_value(self, penalty: Fields) -> Any:
        return super().penalty_value({**penalty, "aggregation": None})


@mutant("penalty.corrected", "GSPO-KL-6", effect="the penalty is cut where sampler and trainer disagree")
class Corrected(Reference):
    """The penalty multiplied by the correction weight: where sampler and trainer disagree it is cut too."""

    def divergence(self, penalty: Fields) -> Any:
        return super().divergence(penalty) * stop(self.weights())


@mutant("penalty.value-clamped", "GSPO-KL-8", effect="beyond a divergence of 10 nothing pulls any more")
class ValueClamped(Reference):
    """The value clamped to ±10 and the log-ratio to ±20, though nobody asked: far away the gradient is 0.

    A guard that is always on.
    """

    def estimated(self, penalty: Fields) -> Any:
        bound = 20.0 if penalty["log_ratio_clamp"] is None else penalty["log_ratio_clamp"]
        cut = 10.0 if penalty["value_clamp"] is None else penalty["value_clamp"]
        return super().estimated({**penalty, "log_ratio_clamp": bound, "value_clamp": cut})


@mutant("penalty.unmasked", "GSPO-DATA-2", effect="the padding is regularised", seen=("NovaSky-AI/SkyRL#1633",))
class Unmasked(Reference):
    """The penalty over every position, counted or not: padding is in it."""

    def read_tokens(self, arrays: dict[str, Any]) -> None:
        super().read_tokens(arrays)
        if "ref_logp" in arrays:
            self.raw = self.leaf - self.number(arrays["ref_logp"])

    def penalty_value(self, penalty: Fields) -> Any:
        own = penalty["aggregation"] or self.objective["aggregation"]
        count = self.count(own) if self.normalizer is None else self.normalizer
        found = self.divergence(penalty)
        return tape.total(self.omega(own) * self.sequences.sum(found)) / (count or 1.0)

    def deviation(self) -> Any:
        return self.raw if hasattr(self, "raw") else super().deviation()


@mutant("penalty.value-k3-gradient-k1", "GSPO-KL-3", effect="the logged divergence is right and the gradient is not")
class ValueK3GradientK1(Reference):
    """k3 with the gradient of k1: the value is right, the gradient is not.

    `k3.detach() + z - z.detach()`.
    """

    def estimate(self, estimator: str, z: Any) -> Any:
        found = super().estimate(estimator, z)
        return stop(found) + (z - stop(z)) if estimator == "k3" else found


@mutant("penalty.importance-capped", "GSPO-KL-5", effect="the penalty loses its pull where the policy moved furthest")
class ImportanceCapped(Reference):
    """The importance of the KL term under the cap that is meant for the surrogate: beyond it the factor stands still."""

    def importance(self, kind: str | None) -> Any:
        if kind is None:
            return super().importance(kind)
        return exp(self.capped(self.log_ratio() if kind == "token" else self.sequence_unit()))


@mutant("penalty.named-again-alone", "GSPO-AGG-8", effect="the penalty is weighted by the size of its micro-batch")
class NamedAgainAlone(Reference):
    """An aggregation that is named for the KL term taken for another one: it does not share the given normaliser."""

    def penalty_value(self, penalty: Fields) -> Any:
        given = self.normalizer
        self.normalizer = None if penalty["aggregation"] is not None else given
        found = super().penalty_value(penalty)
        self.normalizer = given
        return found


@mutant(
    "penalty.clamp-open", "GSPO-KL-8", effect="tokens exactly at a clamp lose their gradient; frameworks disagree there"
)
class ClampOpen(Reference):
    """A clamp that holds what is exactly at its bound: no gradient there."""

    def within(self, values: Any, bound: float) -> Any:
        return abs(stop(values)) < bound


@mutant("penalty.log-ratio-capped", "GSPO-KL-8", effect="far from the reference policy nothing pulls any more")
class LogRatioCapped(Reference):
    """The log-ratio to the reference policy held within ±10 though nobody asked, its value left as it is."""

    def estimated(self, penalty: Fields) -> Any:
        bound = 10.0 if penalty["log_ratio_clamp"] is None else penalty["log_ratio_clamp"]
        return super().estimated({**penalty, "log_ratio_clamp": bound})


@mutant("penalty.dead-zone", "GSPO-KL-1", effect="a policy that drifts away slowly is held by nothing")
class DeadZone(Reference):
    """A log-ratio to the reference policy below 1e-3 taken for 0: noise, it is thought."""

    def deviation(self) -> Any:
        found = super().deviation()
        return where(abs(stop(found)) < 1e-3, 0.0, found)


@mutant("penalty.zero-computed", "GSPO-NUM-3", effect="one token far from the old policy turns the whole step into NaN")
class ZeroComputed(Reference):
    """A KL term that is switched off by a coefficient of 0 and computed all the same: 0 times infinity is NaN."""

    wide = False

    def penalty_term(self) -> Any:
        if self.objective["penalty"] is not None:
            return super().penalty_term()
        z = self.leaf - self.number(self.case.inputs["old_logp"])
        return tape.total(self.estimate("k3", z) * self.sequences.counted * 0.0)
