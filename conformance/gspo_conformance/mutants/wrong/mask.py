"""Wrong masks: tokens counted that were not sampled, and sampled tokens that are not counted."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...tensors import NumPyArray
from ..registry import mutant
from ..sequences import Sequences
from ..tape import value_of
from ..whole import Reference


def _rule(rule: Any) -> type[Reference]:
    """A reference whose mask is put through a rule, response by response."""

    class Ruled(Reference):
        def layout(self, arrays: dict[str, Any]) -> Sequences:
            return super().layout(arrays).with_counted(rule)

    return Ruled


def _shifted(mask: NumPyArray) -> NumPyArray:
    return np.append(False, mask[:-1])[: len(mask)]


def _shifted_left(mask: NumPyArray) -> NumPyArray:
    return np.append(mask[1:], False)[: len(mask)]


def _leading(mask: NumPyArray) -> NumPyArray:
    return mask | (np.cumsum(mask) == 0) & mask.any()


def _bridged(mask: NumPyArray) -> NumPyArray:
    return (np.cumsum(mask) > 0) & (np.cumsum(mask[::-1])[::-1] > 0)


def _without(place: int) -> Any:
    def rule(mask: NumPyArray) -> NumPyArray:
        kept, at = mask.copy(), np.flatnonzero(mask)
        kept[at[place : place + 1 or None]] = False
        return kept

    return rule


def _prefix(mask: NumPyArray) -> NumPyArray:
    return np.arange(len(mask)) < mask.sum()


def _to_eos(mask: NumPyArray) -> NumPyArray:
    """Everything up to the first gap."""
    started = np.cumsum(mask) > 0
    return mask & (np.cumsum(started & ~mask) == 0)


def _from_last_gap(mask: NumPyArray) -> NumPyArray:
    return _to_eos(mask[::-1])[::-1]


@mutant(
    "mask.shifted",
    "GSPO-DATA-4",
    effect="the first token of every response is never trained, and one token behind it is",
    seen=("THUDM/slime@e9e42e5e", "modelscope/ms-swift#8427", "stateset/stateset-agents@a105d69"),
)
class Shifted(_rule(_shifted)):
    """The mask one place to the right: the first token of the response is lost, one behind it is counted.

    Logits predict the next token; the shift was applied to one array and not to the other.
    """


@mutant(
    "mask.shifted-left",
    "GSPO-DATA-4",
    effect="the last token of every response is never trained, and the last one of the prompt is",
)
class ShiftedLeft(_rule(_shifted_left)):
    """The mask one place to the left: the last token of the response is lost, one before it is counted.

    Log-probabilities were cut to the positions that predict, and the mask was cut with them once too often.
    """


@mutant(
    "mask.prompt-counted",
    "GSPO-DATA-4",
    effect="the prompt is trained, and dilutes the ratio",
    seen=("stateset/stateset-agents@a105d69",),
)
class PromptCounted(_rule(_leading)):
    """Everything before the first sampled token counted too: the prompt is in the ratio and in the loss."""


@mutant(
    "mask.eos-dropped",
    "GSPO-DATA-4",
    effect="the policy never learns to stop",
    seen=("huggingface/trl#3200", "huggingface/trl#6357", "alibaba/ROLL@1f9d2171", "google/tunix@e16a9f57"),
)
class EosDropped(_rule(_without(-1))):
    """The last sampled token not counted: the end of the response is never trained.

    Padding and end-of-sequence are one token, and padding is masked.
    """


@mutant(
    "mask.first-dropped",
    "GSPO-DATA-4",
    effect="the first token of every response is never trained",
    seen=("THUDM/slime@e9e42e5e",),
)
class FirstDropped(_rule(_without(0))):
    """The first sampled token not counted."""


@mutant(
    "mask.holes-counted",
    "GSPO-DATA-4",
    effect="the policy is trained to write what the tools said",
    seen=("THUDM/slime#365", "huggingface/trl#4974", "huggingface/trl#5144", "radixark/miles#1827"),
)
class HolesCounted(_rule(_bridged)):
    """Everything between the first and the last sampled token counted: tool output trains."""


@mutant("mask.prefix-assumed", "GSPO-DATA-1", effect="with left padding or tool output the wrong tokens train")
class PrefixAssumed(_rule(_prefix)):
    """The first |y| positions counted instead of those in the mask: only the number is read from it."""


@mutant(
    "mask.first-turn-only",
    "GSPO-DATA-4",
    effect="everything behind the first tool call goes untrained",
    seen=("huggingface/trl#4974",),
)
class FirstTurnOnly(_rule(_to_eos)):
    """Counting stops at the first gap: later turns are not trained.

    The response is taken to end at its first end-of-sequence or padding token.
    """


@mutant(
    "mask.last-turn-only",
    "GSPO-DATA-4",
    effect="the turns before the last go untrained, whatever the tools were asked",
    seen=("modelscope/ms-swift#7838", "NVIDIA-NeMo/Speech#16284"),
)
class LastTurnOnly(_rule(_from_last_gap)):
    """Counting starts behind the last gap: earlier turns are not trained.

    The final answer taken for the response.
    """


@mutant("mask.ignored", "GSPO-DATA-1", effect="prompt, tools and padding train")
class Ignored(_rule(np.ones_like)):
    """No mask: every position counts."""


@mutant(
    "mask.holes-in-length",
    "GSPO-RATIO-4",
    effect="tool output pulls the ratio to 1 and the loss to 0",
    seen=("huggingface/trl#4976", "huggingface/trl#5144"),
)
class HolesInLength(Reference):
    """Gaps counted in |y| though not in the sums: tool output pulls the ratio to 1."""

    def divisors(self) -> NumPyArray:
        spans = self.sequences.with_counted(_bridged)
        return np.maximum(spans.sum(spans.counted.astype(float)), 1)


@mutant("mask.from-values", "GSPO-DATA-1", effect="tokens of probability 1 are thrown out, and |y| shrinks")
class FromValues(Reference):
    """Tokens with log-probability 0 not counted: a token that was certain is taken for padding.

    `mask = logp != 0`, since padding was filled with zeros.
    """

    filled = "logp"

    def layout(self, arrays: dict[str, Any]) -> Sequences:
        found = super().layout(arrays)
        if self.filled not in arrays:
            return found
        certain = np.asarray(value_of(arrays[self.filled])).ravel() == 0
        return Sequences(found.offsets, found.counted & ~certain, found.shape)


@mutant(
    "mask.from-old-values",
    "GSPO-DATA-1",
    effect="tokens that the sampler was certain of are thrown out, and |y| shrinks",
)
class FromOldValues(FromValues):
    """Tokens with old log-probability 0 not counted: a token that the sampler was certain of is taken for padding.

    `mask = old_logp != 0`, since the sampler's log-probabilities were padded with zeros.
    """

    filled = "old_logp"


@mutant(
    "mask.empty-rows-dropped",
    "GSPO-DATA-3",
    effect="behind an empty response every response has its neighbour's advantage",
)
class EmptyRowsDropped(Reference):
    """Padded rows without a counted token dropped, their advantages not: those behind them move up by one.

    Rows and advantages zipped after the rows alone were filtered; the sum is still divided by all responses.
    """

    def unit_advantages(self, advantages: NumPyArray) -> NumPyArray:
        if self.sequences.packed or np.ndim(advantages) != 1:
            return super().unit_advantages(advantages)
        moved, kept = np.asarray(advantages).copy(), np.flatnonzero(self.sequences.lengths)
        moved[kept] = np.asarray(advantages)[: len(kept)]
        return super().unit_advantages(moved)


@mutant(
    "mask.multiplied",
    "GSPO-NUM-5",
    effect="one -inf or NaN in the padding turns the whole step into NaN, or silently stops a response from training",
    seen=("NovaSky-AI/SkyRL#1635", "verl-project/verl#2377", "allenai/open-instruct#1685", "OpenRLHF/OpenRLHF#1240"),
)
class Multiplied(Reference):
    """The mask multiplied onto values instead of selecting them: 0 times NaN is NaN."""

    def clean(self, values: Any) -> Any:
        return values * self.sequences.counted.astype(np.asarray(value_of(values)).dtype)
