"""Wrong sums over micro-batches and ranks: what each part divides by, and what it sees of the others."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...tensors import NumPyArray
from ..advantages import Settings
from ..registry import mutant
from ..sequences import Sequences
from ..tape import stop
from ..whole import Reference


@mutant(
    "distribution.mean-of-means",
    "GSPO-DIST-1",
    effect="responses in a small micro-batch weigh more, and the step depends on how it was cut",
    seen=(
        "allenai/open-instruct#1161",
        "PrimeIntellect-ai/prime-rl#583",
        "PrimeIntellect-ai/prime-rl#390",
        "huggingface/trl#2647",
        "huggingface/trl#3021",
        "verl-project/verl#906",
    ),
)
class MeanOfMeans(Reference):
    """The mean of the parts' own means: responses in a small part weigh more.

    Every micro-batch divides by its own count, gradient accumulation by their number.
    """

    def step(self) -> dict[str, Any]:
        self.parts = len(self.case.inputs["parts"])
        return super().step()

    def part(self, arrays: dict[str, Any]) -> dict[str, Any]:
        own = type(self.case)(**{**vars(self.case), "parameters": self._without_normalizer()})
        kept, self.case = self.case, own
        found = super().part(arrays)
        self.case = kept
        return {name: value / self.parts for name, value in found.items() if name in ("loss", "gradient")}

    def _without_normalizer(self) -> dict[str, Any]:
        return {name: value for name, value in self.case.parameters.items() if name != "normalizer"}


@mutant(
    "distribution.divided-again",
    "GSPO-DIST-2",
    effect="the step shrinks with the number of ranks",
    seen=("verl-project/verl#5366", "NovaSky-AI/SkyRL#1420", "huggingface/trl#3231", "modelscope/ms-swift#10117"),
)
class DividedAgain(Reference):
    """Parts that are normalised globally, then averaged: the step shrinks with their number.

    DDP averages gradients; the factor that undoes it is missing.
    """

    def combine(self, losses: list[Any], gradients: list[NumPyArray]) -> dict[str, Any]:
        return {name: value / len(losses) for name, value in super().combine(losses, gradients).items()}


@mutant("distribution.last-part-only", "GSPO-DIST-1", effect="most of the batch does not train")
class LastPartOnly(Reference):
    """Only the last part of the step: gradients are overwritten instead of accumulated."""

    def combine(self, losses: list[Any], gradients: list[NumPyArray]) -> dict[str, Any]:
        found = super().combine(losses, gradients)
        found["loss"] = losses[-1]
        return found | {f"gradient.{i}": gradient * 0 for i, gradient in enumerate(gradients[:-1])}


@mutant(
    "distribution.loss-of-means",
    "GSPO-DIST-1",
    effect="the curve that is watched is not the loss that is trained",
    seen=("huggingface/trl#6380", "verl-project/verl#4711"),
)
class LossOfMeans(Reference):
    """The gradient of the step, and as its loss the mean over the parts: the curve is not what is trained."""

    def combine(self, losses: list[Any], gradients: list[NumPyArray]) -> dict[str, Any]:
        found = super().combine(losses, gradients)
        return found | {"loss": found["loss"] / len(losses)}


@mutant(
    "distribution.local-ratio",
    "GSPO-DIST-3",
    effect="the ratio depends on how many ranks share a response",
    seen=("THUDM/slime@e9e42e5e", "ServiceNow/Fast-LLM#556"),
)
class LocalRatio(Reference):
    """Each half of the row with a ratio of its own: the context-parallel chunks are not reduced.

    Right on one rank.
    """

    def sequence_unit(self) -> Any:
        return self._by_half(self.log_ratio())

    def gspo_token_unit(self) -> Any:
        return self._by_half(stop(self.log_ratio())) + (self.new - stop(self.new))

    def _by_half(self, log_ratio: Any) -> Any:
        middles = [(start + end + 1) // 2 for start, end in self.sequences.spans]
        offsets = np.unique(np.concatenate([self.sequences.offsets, middles, [self.sequences.counted.size]]))
        halves = Sequences(offsets, self.sequences.counted, (self.sequences.counted.size,))
        lengths = np.maximum(halves.sum(self.sequences.counted.astype(float)), 1)
        return halves.spread(halves.sum(self.clean(log_ratio)) / lengths)


@mutant(
    "distribution.old-misordered",
    "GSPO-DIST-3",
    effect="token ratios compare different tokens; the sequence ratio hides it",
    seen=("THUDM/slime#695",),
)
class OldMisordered(Reference):
    """Old log-probabilities of a response in another order: the halves change places.

    Zig-zag chunks gathered and not put back. The ratio of a whole response does not notice; token ratios do.
    """

    def read_tokens(self, arrays: dict[str, Any]) -> None:
        super().read_tokens(arrays)
        for i in range(self.sequences.number):
            at = self.sequences.tokens(i)
            self.old_logp[at] = np.roll(self.old_logp[at], len(at) // 2)


@mutant(
    "distribution.local-statistics",
    "GSPO-DIST-4",
    effect="a group that is split is compared in parts, with means of its own",
)
class LocalStatistics(Reference):
    """Group statistics on each of two ranks, without a gather: a group that is split is compared in parts."""

    def advantages_of(self, arrays: dict[str, Any], settings: Settings) -> NumPyArray:
        half, local = (len(arrays["rewards"]) + 1) // 2, super().advantages_of
        names = [name for name in ("rewards", "groups", "valid") if name in arrays]
        ranks = [{name: arrays[name][part] for name in names} for part in (slice(half), slice(half, None))]
        return np.concatenate([local(rank, settings) for rank in ranks if len(rank["rewards"])])
