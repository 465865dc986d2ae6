"""Wrong aggregations: what a response weighs, and what the sum is divided by."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...tensors import NumPyArray
from .. import tape
from ..registry import mutant
from ..surrogates import Fields
from ..tape import stop
from ..whole import Reference

_MEANS = ("sequence_mean_token_mean", "sequence_mean_token_sum")


def _mode(wrong: dict[str, str]) -> type[Reference]:
    """A reference that takes one mode for another."""

    class OtherMode(Reference):
        def choose(self, objective: dict[str, Any]) -> dict[str, Any]:
            objective = super().choose(objective)
            mode = objective["aggregation"]["mode"]
            return objective | {"aggregation": objective["aggregation"] | {"mode": wrong.get(mode, mode)}}

    return OtherMode


@mutant(
    "aggregation.token-mean",
    "GSPO-AGG-1",
    effect="long responses dominate the step, and the loss can change sign",
    seen=(
        "huggingface/trl#3823",
        "huggingface/trl#6042",
        "OpenRLHF/OpenRLHF@1b23ecf0",
        "areal-project/AReaL#1423",
        "ServiceNow/Fast-LLM#544",
        "NVIDIA-NeMo/labs-molt#54",
    ),
)
class TokenMean(_mode({"sequence_mean_token_mean": "token_mean"})):
    """The mean over all tokens of the batch: each response is weighted by its length.

    The loss of a response broadcast to its tokens, then the token mean that the trainer uses for
    everything else. The commonest deviation there is, and the default of several trainers.
    """


@mutant("aggregation.token-mean-divided", "GSPO-AGG-3", effect="the learning rate falls with the number of responses")
class TokenMeanDivided(Reference):
    """The token mean divided by the number of responses as well.

    `(token_losses.sum(-1) / total).mean()`: a sum was due where the mean is taken by habit.
    """

    def aggregate(self, values: Any, aggregation: Fields) -> Any:
        found = super().aggregate(values, aggregation)
        local = aggregation["mode"] == "token_mean" and self.normalizer is None
        return found / max(self.sequences.number, 1) if local else found


@mutant("aggregation.micro-batch-means", "GSPO-AGG-8", effect="a response in a smaller micro-batch weighs more")
class MicroBatchMeans(Reference):
    """The mean over micro-batches of two responses of their own means: the odd response weighs twice.

    The batch split inside the loss to spare memory, the losses averaged.
    """

    def aggregate(self, values: Any, aggregation: Fields) -> Any:
        mode, lengths = aggregation["mode"], self.lengths()
        if self.normalizer is not None or mode in ("token_sum", "group_token_mean") or aggregation["count"] == "given":
            return super().aggregate(values, aggregation)
        counts = np.ones_like(lengths) if aggregation["count"] == "all" else (lengths > 0).astype(lengths.dtype)
        pairs = np.arange(self.sequences.number) // 2
        totals = np.bincount(pairs, lengths if mode == "token_mean" else counts)
        weights = 1.0 / np.maximum(totals, 1.0)[pairs] / max(len(totals), 1)
        return tape.total(self.omega(aggregation) * self.sum_tokens(values) * weights)


@mutant(
    "aggregation.token-sum",
    "GSPO-AGG-1",
    effect="gradients larger by |y|: the learning rate grows with the length, and training diverges",
    seen=("alibaba/ROLL#165", "huggingface/trl#4988", "arXiv:2602.05261"),
)
class TokenSum(_mode({"sequence_mean_token_mean": "sequence_mean_token_sum"})):
    """The mean over responses of their token sums: each response is weighted by its length, and nothing divides it again.

    `seq-mean-token-sum`: the 1/|y| of the ratio is cancelled. LUSPO does it on purpose.
    """


@mutant(
    "aggregation.response-sum",
    "GSPO-AGG-2",
    effect="the loss grows with the batch: the learning rate depends on its size",
    seen=("verl-project/verl#3741",),
)
class ResponseSum(Reference):
    """The sum over responses where the mean is due: the loss grows with the batch."""

    def count(self, aggregation: Fields) -> Any:
        wanted = aggregation["mode"] in ("sequence_mean_token_mean", "sequence_mean_token_sum")
        return 1.0 if wanted else super().count(aggregation)


@mutant("aggregation.responses-over-tokens", "GSPO-AGG-2", effect="the step shrinks as responses get longer")
class OverTokens(Reference):
    """The sum over responses divided by the number of tokens: the step shrinks with the length.

    A per-response loss handed to a trainer that divides by its global token count.
    """

    def count(self, aggregation: Fields) -> Any:
        wanted = aggregation["mode"] == "sequence_mean_token_mean"
        return self.lengths().sum() if wanted else super().count(aggregation)


@mutant(
    "aggregation.padded-divisor",
    "GSPO-AGG-1",
    effect="the loss moves when padding is added; short responses count for less",
    seen=("verl-project/verl#3741", "verl-project/verl#5417", "stateset/stateset-agents@09f7244"),
)
class PaddedDivisor(Reference):
    """Token losses divided by the padded width instead of |y|: padding shrinks the loss, short responses count for less.

    `.mean(-1)` of a masked tensor, or a length budget that follows the batch.
    """

    def omega(self, aggregation: Fields) -> NumPyArray:
        if aggregation["mode"] != "sequence_mean_token_mean":
            return super().omega(aggregation)
        width = max(int(np.diff(self.sequences.offsets).max(initial=1)), 1)
        return (self.lengths() > 0) / width


@mutant(
    "aggregation.unmasked-numerator",
    "GSPO-DATA-2",
    effect="what stands in the padding trains the model",
    seen=("alibaba/ROLL#444",),
)
class UnmaskedNumerator(Reference):
    """Token losses summed over every position, counted or not: padding enters the loss.

    The mask applied to the number of tokens but not to their sum.
    """

    def clean(self, values: Any) -> Any:
        return values

    def sum_tokens(self, values: Any) -> Any:
        return self.sequences.sum(super().clean(values))

    def aggregate(self, values: Any, aggregation: Fields) -> Any:
        count = self.count(aggregation) if self.normalizer is None else self.normalizer
        return tape.total(self.omega(aggregation) * self.sequences.sum(values)) / (count or 1.0)


@mutant(
    "aggregation.normalizer-ignored",
    "GSPO-AGG-8",
    effect="each micro-batch is as large as a whole step; the step grows with their number",
    seen=("verl-project/verl#5366", "alibaba/ROLL#255"),
)
class NormalizerIgnored(Reference):
    """The normaliser of the step ignored: every micro-batch divided by its own count.

    The option is accepted and not forwarded.
    """

    def aggregate(self, values: Any, aggregation: Fields) -> Any:
        given, self.normalizer = self.normalizer, None
        found = super().aggregate(values, aggregation)
        self.normalizer = given
        return found


@mutant("aggregation.normalizer-at-least-one", "GSPO-AGG-8", effect="where ranks are averaged, a small step is smaller")
class NormalizerAtLeastOne(Reference):
    """A normaliser below 1 taken for 1: the guard of an empty batch, put where a number is given."""

    def positive(self, normalizer: float | None) -> float | None:
        given = super().positive(normalizer)
        return None if given is None else max(given, 1.0)


@mutant(
    "aggregation.empty-excluded",
    "GSPO-AGG-7",
    effect="filtering responses makes the others' gradient larger",
    seen=("verl-project/verl#4510", "verl-project/verl#4769"),
)
class EmptyExcluded(Reference):
    """Responses without counted tokens left out of the number that divides: the others' gradient grows."""

    def count(self, aggregation: Fields) -> Any:
        counted = "non_empty" if aggregation["count"] == "all" else aggregation["count"]
        return super().count({**aggregation, "count": counted})


@mutant(
    "aggregation.learning-only",
    "GSPO-AGG-2",
    effect="groups without signal make the others' gradient larger, as dynamic sampling after the fact would",
)
class LearningOnly(Reference):
    """The mean over the responses whose advantage is not 0."""

    def count(self, aggregation: Fields) -> Any:
        found = super().count(aggregation)
        if aggregation["mode"] not in _MEANS or not hasattr(self, "advantages"):
            return found
        idle = (self.lengths() > 0) & (self.sequences.sum(np.abs(stop(self.advantages))) == 0)
        return max(1.0, found - np.count_nonzero(idle))


@mutant(
    "aggregation.responses-minus-one",
    "GSPO-AGG-2",
    effect="the step is larger, by a third with four responses, by a thousandth with a thousand",
)
class ResponsesMinusOne(Reference):
    """The sum over responses divided by one response too few, as where a variance is meant."""

    def count(self, aggregation: Fields) -> Any:
        found = super().count(aggregation)
        return max(1.0, found - 1) if aggregation["mode"] in _MEANS else found


@mutant(
    "aggregation.empty-counted",
    "GSPO-AGG-7",
    effect="filtering responses makes the step smaller",
    seen=("verl-project/verl#4510", "huggingface/trl#6439"),
)
class EmptyCounted(Reference):
    """Responses without counted tokens counted although the objective says they are not: the step shrinks."""

    def count(self, aggregation: Fields) -> Any:
        counted = "all" if aggregation["count"] == "non_empty" else aggregation["count"]
        return super().count({**aggregation, "count": counted})


@mutant(
    "aggregation.modes-merged",
    "GSPO-AGG-4",
    effect="an option changes nothing, and experiments that compare the two compare noise",
    seen=("verl-project/verl#911", "verl-project/verl#1233"),
)
class ModesMerged(_mode({"sequence_mean_token_sum": "token_mean"})):
    """Sequence mean of token sums computed as a token mean: two modes are one.

    A branch that falls through.
    """


@mutant("aggregation.token-mean-by-response", "GSPO-AGG-3", effect="long responses count for less than asked")
class TokenMeanByResponse(_mode({"token_mean": "sequence_mean_token_mean"})):
    """The mean of each response where the token mean is asked for: tokens of long responses count for less."""


@mutant(
    "aggregation.group-as-batch",
    "GSPO-AGG-6",
    effect="prompts with long answers dominate",
    seen=("verl-project/verl#2776",),
)
class GroupAsBatch(_mode({"group_token_mean": "token_mean"})):
    """The token mean over the batch where the mean over groups is asked for: prompts with long answers dominate."""


@mutant(
    "aggregation.mode-ignored",
    "GSPO-AGG-3",
    effect="a setting that does nothing; the loss changes where a later release obeys it",
)
class ModeIgnored(Reference):
    """The mean over responses of the mean over tokens, whatever is asked for, where the ratio is that of the sequence.

    The aggregation written into the loss of GSPO, beside an option that the other losses obey.
    """

    def choose(self, objective: dict[str, Any]) -> dict[str, Any]:
        objective = super().choose(objective)
        if objective["ratio"] not in ("sequence", "gspo_token"):
            return objective
        return objective | {"aggregation": objective["aggregation"] | {"mode": "sequence_mean_token_mean"}}


@mutant("aggregation.by-group", "GSPO-AGG-1", effect="within a prompt, responses are weighted by their length")
class ByGroup(_mode({"sequence_mean_token_mean": "group_token_mean"})):
    """The token mean of each group where the mean over responses is asked for: within a prompt length is weight.

    `prompt_mean`; without group ids the whole batch is one group.
    """


@mutant(
    "aggregation.groups-summed",
    "GSPO-AGG-6",
    effect="the loss grows with the number of prompts",
    seen=("stateset/stateset-agents@664f95c",),
)
class GroupsSummed(Reference):
    """The sum over groups where their mean is due: the loss grows with the number of prompts."""

    def count(self, aggregation: Fields) -> Any:
        return 1.0 if aggregation["mode"] == "group_token_mean" else super().count(aggregation)


@mutant("aggregation.group-order", "GSPO-AGG-6", effect="tokens are averaged over the wrong responses")
class GroupOrder(Reference):
    """Groups read from position, as equal blocks: ids that are not contiguous are mixed up."""

    def keys(self) -> NumPyArray:
        keys = super().keys()
        size = len(keys) // max(len(np.unique(keys)), 1)
        return np.arange(len(keys)) // max(size, 1)


@mutant("aggregation.constant-ignored", "GSPO-AGG-5", effect="the step is larger by the length budget")
class ConstantIgnored(Reference):
    """Token sums not divided by the length constant: the step is larger by that factor."""

    def omega(self, aggregation: Fields) -> NumPyArray:
        return super().omega({**aggregation, "constant": 1.0})


@mutant("aggregation.token-sum-mean", "GSPO-AGG-5", effect="the loss depends on the size of the batch")
class TokenSumMean(_mode({"token_sum": "sequence_mean_token_sum"})):
    """The token sum divided by the number of responses: a mean where a sum over a constant is asked for."""


@mutant(
    "aggregation.wrong-axis",
    "GSPO-AGG-1",
    effect="a token is averaged with the tokens at the same place in other responses",
)
class WrongAxis(Reference):
    """Means taken over the responses at each position, then over positions: the wrong axis first.

    `dim=0` for `dim=-1`; a square batch raises no error.
    """

    def aggregate(self, values: Any, aggregation: Fields) -> Any:
        if aggregation["mode"] != "sequence_mean_token_mean" or self.sequences.packed:
            return super().aggregate(values, aggregation)
        counted = self.sequences.counted.reshape(self.sequences.shape).astype(stop(values).dtype)
        weight = counted / np.maximum(counted.sum(axis=0), 1) / self.sequences.shape[1]
        return tape.total(self.clean(values) * weight.ravel())


@mutant("aggregation.normalizer-guessed", "GSPO-AGG-8", effect="every micro-batch is normalised by itself, unnoticed")
class NormalizerGuessed(Reference):
    """A missing normaliser replaced by the local count where the objective demands one."""

    def count(self, aggregation: Fields) -> Any:
        counted = "all" if aggregation["count"] == "given" else aggregation["count"]
        return super().count({**aggregation, "count": counted})


@mutant(
    "aggregation.any-normalizer", "GSPO-AGG-8", effect="an empty step divides by 0, and a wrong sign trains backwards"
)
class AnyNormalizer(Reference):
    """A normaliser of 0 or below it accepted: the loss is undivided or of the other sign."""

    def positive(self, normalizer: float | None) -> float | None:
        return normalizer


@mutant(
    "aggregation.whole-normalizer",
    "GSPO-AGG-8",
    effect="averaged over ranks, the steps are too large or too small by up to a half",
)
class WholeNormalizer(Reference):
    """The normaliser rounded to a whole number: it counts responses, it is thought."""

    def positive(self, normalizer: float | None) -> float | None:
        found = super().positive(normalizer)
        return None if found is None else max(1.0, float(np.rint(found)))
