"""Right formulas in the wrong arithmetic: narrow floats, cancelling sums, overflow, division by nothing."""

from __future__ import annotations

from math import copysign, frexp, inf, isfinite, ldexp
from typing import Any

import numpy as np

from ...tensors import NumPyArray
from .. import tape
from ..narrow import LARGEST, ROUND, SIGNIFICAND
from ..reference import TOKENWISE
from ..registry import mutant
from ..surrogates import Fields
from ..tape import exp, make, stop, straight, value_of, where
from ..whole import Reference


class _Narrow(Reference):
    """Every quantity of the loss rounded to a narrow float, bounds included."""

    storage = "bfloat16"

    def working(self, x: Any) -> Any:
        return straight(x, ROUND[self.storage](value_of(x)).astype(value_of(x).dtype))

    def bounds(self, clip: Fields) -> tuple[Any, Any]:
        low, high = super().bounds(clip)
        return float(ROUND[self.storage](np.asarray(low))), float(ROUND[self.storage](np.asarray(high)))


@mutant("numerics.bfloat16-loss", "GSPO-NUM-1", effect="both bounds of the paper's range round to 1: GSPO is off")
class Bfloat16Loss(_Narrow):
    """The loss under bfloat16 autocast: ratio and bounds are 1, nothing is ever clipped.

    The spacing of bfloat16 at 1 is 0.0078; the range is 0.0007 wide.
    """


@mutant("numerics.float16-loss", "GSPO-NUM-1", effect="the range collapses to two values, and sums overflow")
class Float16Loss(_Narrow):
    """The loss under float16 autocast: the bounds are 0.9995 and 1.0.

    The spacing of float16 at 1 is 0.001.
    """

    storage = "float16"


@mutant(
    "numerics.bfloat16-logps",
    "GSPO-NUM-1",
    effect="an error of two clip widths at 64 tokens: noise decides what is clipped",
    seen=("AI-Hypercomputer/maxtext#5231", "THUDM/slime#892"),
)
class Bfloat16Logps(Reference):
    """Log-probabilities rounded to bfloat16 before they are subtracted: noise of two clip widths at 64 tokens."""

    storage = "bfloat16"

    def read_tokens(self, arrays: dict[str, Any]) -> None:
        super().read_tokens(arrays)
        self.new = straight(self.new, self._stored(value_of(self.new)))
        self.old_logp = self._stored(self.old_logp)

    def _stored(self, values: NumPyArray) -> NumPyArray:
        return ROUND[self.storage](values).astype(values.dtype)


@mutant(
    "numerics.bfloat16-advantages",
    "GSPO-NUM-1",
    effect="advantages are off by up to 0.4%, and those of a group no longer add up to 0",
)
class Bfloat16Advantages(Reference):
    """Advantages rounded to bfloat16 on their way into the loss: they were moved beside the weights of the model."""

    def unit_advantages(self, advantages: NumPyArray) -> NumPyArray:
        found = super().unit_advantages(advantages)
        return ROUND["bfloat16"](found).astype(found.dtype)


@mutant("numerics.float16-logps", "GSPO-NUM-1", effect="a fifth of a clip width at 64 tokens")
class Float16Logps(Bfloat16Logps):
    """Log-probabilities rounded to float16 before they are subtracted."""

    storage = "float16"


@mutant("numerics.float32-only", "GSPO-NUM-2", effect="a check in float64 finds errors of float32")
class Float32Only(Reference):
    """float32 inside whatever the inputs: half of the digits of a float64 caller are lost."""

    def number(self, values: NumPyArray) -> NumPyArray:
        return np.asarray(values).astype(np.float32).ravel()


def _accumulated(values: NumPyArray, storage: str) -> float:
    """A running sum that is rounded at every step."""
    bits, total = SIGNIFICAND[storage], 0.0
    for value in values.tolist():
        if not isfinite(total + value):
            return total + value
        mantissa, exponent = frexp(total + value)
        total = ldexp(round(ldexp(mantissa, bits)), exponent - bits)
    return total if abs(total) <= LARGEST[storage] else copysign(inf, total)


class _Accumulator(Reference):
    """Sums over a response in a narrow accumulator, left to right."""

    storage = "bfloat16"

    def sum_tokens(self, values: Any) -> Any:
        clean = self.clean(values)
        array = value_of(clean)
        sums = [_accumulated(array[self.sequences.tokens(i)], self.storage) for i in range(self.sequences.number)]
        return straight(self.sequences.sum(clean), np.array(sums, dtype=array.dtype))

    def lengths(self) -> NumPyArray:
        return Reference.sum_tokens(self, np.ones(self.sequences.counted.shape))


@mutant("numerics.bfloat16-accumulator", "GSPO-NUM-4", effect="long responses: the sum stops growing, the ratio is 1")
class Bfloat16Accumulator(_Accumulator):
    """Token sums accumulated in bfloat16: the sum stands still once a term is below half its spacing."""


@mutant("numerics.float16-accumulator", "GSPO-NUM-4", effect="long responses: the sum stops growing, or overflows")
class Float16Accumulator(_Accumulator):
    """Token sums accumulated in float16: they stand still, and overflow at 65504."""

    storage = "float16"


@mutant(
    "numerics.separate-sums",
    "GSPO-RATIO-5",
    effect="two sums of thousands are subtracted: what is left is their rounding",
)
class SeparateSums(_Accumulator):
    """The sums of new and old log-probabilities taken apart in float16, then subtracted: what is left is rounding.

    Sequence log-probabilities stored first, compared later.
    """

    storage = "float16"

    def sequence_log_ratio(self) -> Any:
        return (self.sum_tokens(self.new) - self.sum_tokens(self.old_logp)) / self.divisors()

    def sum_tokens(self, values: Any) -> Any:
        return super().sum_tokens(values) if hasattr(self, "leaf") else Reference.sum_tokens(self, values)


@mutant(
    "numerics.separate-means",
    "GSPO-RATIO-5",
    effect="the rounding of two means near -1 is left in a difference of 1e-4",
)
class SeparateMeans(Reference):
    """The means of new and old log-probabilities taken apart, then subtracted: their rounding is left.

    One score per sequence and policy, compared afterwards.
    """

    def sequence_log_ratio(self) -> Any:
        return self.mean_tokens(self.new) - self.mean_tokens(self.old_logp)


@mutant(
    "numerics.length-epsilon",
    "GSPO-RATIO-4",
    effect="none to speak of in float32; float64 callers lose half of their digits",
)
class LengthEpsilon(Reference):
    """|y| + 1e-8 where |y| is due: every mean is off by 1e-8/|y|.

    A guard against division by 0.
    """

    def divisors(self) -> NumPyArray:
        return self.lengths() + 1e-8


@mutant(
    "numerics.length-epsilon-large",
    "GSPO-RATIO-4",
    effect="the ratio of a short response is nearer to 1, by a part in 1e5",
)
class LargeLengthEpsilon(Reference):
    """|y| + 1e-5 where |y| is due: every mean is off by 1e-5/|y|.

    A guard against division by 0, large enough for float16.
    """

    def divisors(self) -> NumPyArray:
        return self.lengths() + 1e-5


@mutant(
    "numerics.masked-overflow",
    "GSPO-NUM-5",
    effect="one padding token turns the whole gradient into NaN, under a finite loss",
)
class MaskedOverflow(Reference):
    """exp taken before the mask selects: a finite loss and a NaN gradient where the padding overflows.

    `where(mask, exp(d), 0)`: the derivative is 0 times infinity.
    """

    wide = False

    def read_tokens(self, arrays: dict[str, Any]) -> None:
        super().read_tokens(arrays)
        self.raw = self.leaf - self.number(arrays["old_logp"])

    def policy_term(self) -> Any:
        unsafe = where(self.sequences.counted, exp(self.raw), 0.0)
        return super().policy_term() + tape.total(unsafe * 0.0)


@mutant(
    "numerics.empty-nan",
    "GSPO-DATA-3",
    effect="one response without tokens turns the whole step into NaN",
    seen=("alibaba/ROLL@c93093e8", "OpenRLHF/OpenRLHF@8f16a959"),
)
class EmptyNan(Reference):
    """0/0 for a response without counted tokens: NaN for the whole step."""

    def divisors(self) -> NumPyArray:
        return self.lengths()

    def omega(self, aggregation: Fields) -> NumPyArray:
        found = super().omega(aggregation)
        return (
            np.where(self.lengths() > 0, found, np.nan) if aggregation["mode"] == "sequence_mean_token_mean" else found
        )


@mutant(
    "numerics.empty-batch-nan",
    "GSPO-AGG-8",
    effect="a micro-batch in which everything is masked turns the step into NaN",
    seen=("OpenRLHF/OpenRLHF@8f16a959",),
)
class EmptyBatchNan(Reference):
    """A token sum divided by a token count of 0: NaN for a batch without counted tokens."""

    def aggregate(self, values: Any, aggregation: Fields) -> Any:
        found = super().aggregate(values, aggregation)
        return found if self.lengths().any() else found * np.nan


@mutant(
    "numerics.overflow-in-both-branches",
    "GSPO-NUM-3",
    effect="one response that drifted far makes the gradient of all NaN",
    seen=("OpenRLHF/OpenRLHF#1293",),
)
class OverflowBothBranches(Reference):
    """exp taken before the gate selects: a clipped response that overflows has the gradient 0 times infinity.

    `min(x * A, clip(x) * A)` as printed, and a `where` behind it.
    """

    wide = False

    def clip_value(self, log_ratio: Any, advantages: Any, clip: Fields) -> Any:
        ratio = self.ratio(log_ratio)
        outside = self.outside(stop(ratio), advantages, clip)
        open_ = (stop(advantages) != 0) & ~outside.any
        poisoned = make(stop(ratio), (ratio, lambda g: g * np.where(np.isfinite(stop(ratio)), 1.0, np.inf)))
        return self.held(open_, poisoned, outside, clip) * advantages


@mutant(
    "numerics.zero-times-overflow",
    "GSPO-SURR-12",
    effect="a response without advantage turns the step into NaN",
    seen=("OpenRLHF/OpenRLHF#1293",),
)
class ZeroTimesOverflow(Reference):
    """x A with A = 0 and x infinite: NaN where exactly 0 is due."""

    wide = False

    def clip_value(self, log_ratio: Any, advantages: Any, clip: Fields) -> Any:
        found = super().clip_value(log_ratio, advantages, clip)
        return found + stop(exp(stop(log_ratio)) * stop(advantages)) * 0.0 * (stop(advantages) == 0)


@mutant(
    "numerics.cumulative-sums",
    "GSPO-NUM-3",
    effect="one bad segment spoils every segment behind it, and long packs lose digits",
)
class CumulativeSums(Reference):
    """Segment sums as differences of one running sum: an overflow spoils every segment behind it.

    Linear time and one line; in float32 a million tokens cost 7e-4 in log s.
    """

    wide = False

    def sum_tokens(self, values: Any) -> Any:
        clean = self.clean(values)
        running = np.append(np.zeros(1, value_of(clean).dtype), np.cumsum(value_of(clean)))
        offsets = self.sequences.offsets
        return straight(self.sequences.sum(clean), running[offsets[1:]] - running[offsets[:-1]])

    def lengths(self) -> NumPyArray:
        return Reference.sum_tokens(self, np.ones(self.sequences.counted.shape))


@mutant(
    "numerics.nan-to-zero", "GSPO-NUM-6", effect="a corrupted log-probability trains as if the token had not changed"
)
class NanToZero(Reference):
    """Log-probabilities that are not finite replaced by 0: what should be an error trains.

    `torch.nan_to_num` somewhere upstream.
    """

    def inputs(self, arrays: dict[str, Any]) -> dict[str, Any]:
        def mended(name: str, value: Any) -> Any:
            if not name.endswith("logp"):
                return value
            return np.where(np.isfinite(value), value, 0.0).astype(value.dtype)

        return {name: mended(name, value) for name, value in super().inputs(arrays).items()}


@mutant(
    "numerics.non-finite-accepted",
    "GSPO-NUM-6",
    effect="one corrupted token turns the step into NaN, far from its cause",
)
class NonFiniteAccepted(Reference):
    """NaN and infinity at counted tokens accepted: the loss is NaN instead of an error that names the argument."""

    def refuse(self, name: str, values: NumPyArray) -> None:
        pass


@mutant("numerics.shapes-broadcast", "GSPO-RATIO-1", effect="every response is compared with the first one's tokens")
class ShapesBroadcast(Reference):
    """One row taken for every row: an array of another shape is broadcast where it should be refused."""

    def fitted(self, arrays: dict[str, Any]) -> dict[str, Any]:
        shape = np.shape(arrays["logp"])
        return arrays | {name: np.broadcast_to(arrays[name], shape) for name in TOKENWISE if name in arrays}
