"""Wrong ratios: what is averaged, over how many tokens, against which policy."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...tensors import NumPyArray
from .. import tape
from ..registry import mutant
from ..sequences import Sequences
from ..tape import exp, log, stop, where
from ..whole import Reference


@mutant(
    "ratio.arithmetic-mean",
    "GSPO-RATIO-2",
    effect="one token that became twice as likely outweighs another that became half as likely; the gradient is GRPO's",
)
class ArithmeticMean(Reference):
    """The arithmetic mean of the token ratios: one large token ratio moves the whole response.

    `mean(exp(d))` where eq. 7 says `exp(mean(d))`.
    """

    def sequence_log_ratio(self) -> Any:
        mean = self.mean_tokens(exp(self.log_ratio()))
        return log(where(self.lengths() > 0, mean, 1.0))


@mutant(
    "ratio.no-length-normalisation",
    "GSPO-RATIO-2",
    effect="long responses leave the clip range by length alone, and overflow",
    seen=("rasbt/reasoning-from-scratch#243", "PrimeIntellect-ai/prime-rl#1044"),
)
class Product(Reference):
    """The product of the token ratios, no root: the ratio grows exponentially with the length.

    `exp(sum(d))`: the plain sequence likelihood ratio, without the exponent 1/|y|.
    """

    def sequence_log_ratio(self) -> Any:
        return self.sum_tokens(self.log_ratio())


def _widths(sequences: Sequences) -> NumPyArray:
    lengths = np.diff(sequences.offsets)
    return np.full(sequences.number, max(int(lengths.max(initial=1)), 1))


@mutant(
    "ratio.padded-length",
    "GSPO-RATIO-4",
    effect="the ratio of a short response in a wide batch sticks to 1, and moves with the padding",
    seen=("stateset/stateset-agents@09f7244",),
)
class PaddedLength(Reference):
    """The log-ratios summed over |y| but divided by the padded width: padding pulls the ratio to 1.

    `.mean(dim=-1)` after a multiplication by the mask.
    """

    def sequence_log_ratio(self) -> Any:
        return self.sum_tokens(self.log_ratio()) / _widths(self.sequences)


@mutant("ratio.longest-length", "GSPO-RATIO-4", effect="a response's ratio depends on the longest of its batch")
class LongestLength(Reference):
    """Every sum of log-ratios divided by the longest length of the batch: short responses hardly move.

    One normaliser for the batch, `mask.sum(-1).max()`, kept as a scalar.
    """

    def sequence_log_ratio(self) -> Any:
        return self.sum_tokens(self.log_ratio()) / max(self.lengths().max(), 1.0)


@mutant("ratio.of-batch", "GSPO-RATIO-2", effect="one ratio for all: the responses are clipped together or not at all")
class OfBatch(Reference):
    """The mean log-ratio of all tokens of the batch for every response: they share one ratio.

    A masked mean without its dimension.
    """

    def sequence_log_ratio(self) -> Any:
        whole = tape.total(self.sum_tokens(self.log_ratio())) / max(self.lengths().sum(), 1.0)
        return where(self.lengths() > 0, whole, 0.0)


@mutant(
    "ratio.squeezed",
    "GSPO-RATIO-2",
    effect="a batch of one-token answers is trained as one response; every other batch is right",
)
class Squeezed(OfBatch):
    """Axes of size 1 dropped: responses of one token in a batch of width 1 share one ratio.

    `logp.squeeze()` before a sum over the last axis, which is then the axis of the responses.
    """

    def sequence_log_ratio(self) -> Any:
        narrow = not self.sequences.packed and self.sequences.shape[1] == 1
        return super().sequence_log_ratio() if narrow else Reference.sequence_log_ratio(self)


@mutant("ratio.length-minus-one", "GSPO-RATIO-4", effect="short responses are stretched: twofold at two tokens")
class LengthMinusOne(Reference):
    """The sum of log-ratios divided by |y| - 1: the ratio of a short response is too far from 1.

    The length of the shifted labels, or the position of the last token instead of the number of tokens.
    """

    def sequence_log_ratio(self) -> Any:
        return self.sum_tokens(self.log_ratio()) / np.maximum(self.lengths() - 1, 1)


@mutant("ratio.inverted", "GSPO-RATIO-1", effect="the policy is pushed away from what was rewarded")
class Inverted(Reference):
    """The old policy over the new one: value and gradient have the wrong direction.

    The difference of log-probabilities taken the other way round.
    """

    def log_ratio(self) -> Any:
        return -super().log_ratio()


@mutant(
    "ratio.logarithm", "GSPO-SURR-1", effect="on-policy the value of every response is 0; the gradient is almost right"
)
class Logarithm(Reference):
    """The logarithm of the ratio in place of the ratio inside the range: the value is off by A, the gradient by x.

    The exponential taken for the comparison with the range, and not for the value.
    """

    def held(self, open_: Any, ratio: Any, outside: Any, clip: Any) -> Any:
        return super().held(open_, log(ratio), outside, clip)


@mutant("ratio.old-shifted", "GSPO-DATA-5", effect="ratios of unrelated tokens: most responses are clipped at once")
class OldShifted(Reference):
    """The old log-probabilities one place late: each token is compared with the one before it.

    One of the two was shifted by one for next-token prediction already.
    """

    def checked(self, name: str, arrays: dict[str, Any]) -> NumPyArray:
        values = super().checked(name, arrays)
        if name != "old_logp":
            return values
        return np.roll(values.reshape(self.sequences.shape), 1, axis=-1).ravel()


@mutant("ratio.reference-as-old", "GSPO-DATA-5", effect="the range limits the distance to the reference, not the step")
class ReferenceAsOld(Reference):
    """The reference policy in place of the old one: the ratio never returns to 1.

    Two frozen models, the wrong one in the denominator; shows only where both are there.
    """

    def inputs(self, arrays: dict[str, Any]) -> dict[str, Any]:
        arrays = super().inputs(arrays)
        return arrays | {"old_logp": arrays["ref_logp"]} if "ref_logp" in arrays else arrays


@mutant(
    "ratio.always-one",
    "GSPO-DATA-5",
    effect="clipping never happens; after the first mini-batch the step is plain off-policy REINFORCE",
    seen=(
        "huggingface/trl#2608",
        "NovaSky-AI/SkyRL#1315",
        "radixark/miles#1829",
        "meta-pytorch/torchforge#571",
    ),
)
class AlwaysOne(Reference):
    """The new policy in place of the old one, detached: the ratio is 1 whatever happened.

    `old_logp = logp.detach()` where none was recorded, kept after the first update.
    """

    def log_ratio(self) -> Any:
        return self.new - stop(self.new)


@mutant(
    "ratio.shape-broadcast",
    "GSPO-RATIO-2",
    effect="every response is weighted by the ratios of all others",
    seen=("modelscope/ms-swift@ab85a61d",),
)
class ShapeBroadcast(Reference):
    """Sums `[B]` over lengths `[B, 1]`: a `[B, B]` matrix of every sum over every length.

    One `unsqueeze` too many; the mean over the matrix is a scalar and nobody notices.
    """

    def values(self) -> Any:
        if self.objective["ratio"] != "sequence" or self.objective["surrogate"]["kind"] != "clip":
            return super().values()
        advantages = np.array([self.advantages[at[:1]].sum() for at in self._tokens()])
        matrix = self.clip_value(self._matrix(), advantages[:, None], self.objective["surrogate"])
        return self.sequences.spread(tape.row_sums(matrix) / self.sequences.number)

    def ratio_answer(self) -> dict[str, Any]:
        answer = super().ratio_answer()
        return {"ratio": exp(stop(self._matrix()))} if self.objective["ratio"] == "sequence" else answer

    def _matrix(self) -> Any:
        return self.sum_tokens(self.log_ratio()) / self.divisors()[:, None]

    def _tokens(self) -> list[NumPyArray]:
        return [self.sequences.tokens(i) for i in range(self.sequences.number)]


@mutant(
    "ratio.batch-centred",
    "GSPO-RATIO-2",
    effect="a step that makes every response likelier goes unseen, and one response's ratio depends on the others",
    seen=("MakazhanAlpamys/Soup#723",),
)
class BatchCentred(Reference):
    """Mean log-ratios with their batch average taken off: a common drift disappears.

    Normalised "for stability", over the batch where the paper normalises over tokens.
    """

    def sequence_log_ratio(self) -> Any:
        mean = super().sequence_log_ratio()
        return mean - tape.total(mean) / self.sequences.number


@mutant(
    "ratio.token-clamp",
    "GSPO-RATIO-6",
    effect="one extreme token, which should end up in the mean, is cut; its gradient is lost",
    seen=("verl-project/verl#2775", "OpenRLHF/OpenRLHF#1293"),
)
class TokenClamp(Reference):
    """Each token's log-ratio clamped to ±20 before the mean: extreme tokens no longer cancel.

    A guard against overflow put at the tokens instead of at the exponent.
    """

    def log_ratio(self) -> Any:
        return tape.clip(super().log_ratio(), -20.0, 20.0)


@mutant(
    "ratio.token-clamp-10",
    "GSPO-RATIO-6",
    effect="as a clamp at 20, and met earlier: one token that nearly vanished decides what is lost",
)
class TokenClampTen(Reference):
    """Each token's log-ratio clamped to ±10 before the mean: far tokens no longer cancel."""

    def log_ratio(self) -> Any:
        return tape.clip(super().log_ratio(), -10.0, 10.0)


@mutant(
    "ratio.gspo-token-value-lost",
    "GSPO-RATIO-3",
    effect="clipping never happens: the value that is compared with the range is always 1",
    seen=("agentscope-ai/Trinity-RFT#154",),
)
class TokenValueLost(Reference):
    """GSPO-token without sg[s]: the ratio is always 1.

    `exp(logp - logp.detach())` alone, the factor in front forgotten.
    """

    def gspo_token_unit(self) -> Any:
        return self.new - stop(self.new)


@mutant(
    "ratio.cap-10",
    "GSPO-RATIO-6",
    effect="a bad response that became far likelier gets no gradient: the one that most needs it",
    seen=("verl-project/verl#2775",),
)
class Cap10(Reference):
    """The log-ratio capped at 10 inside the graph: above it A < 0 has no gradient.

    `torch.clamp(log_ratio, max=10.0)` against overflow.
    """

    bound = 10.0

    def capped(self, log_ratio: Any) -> Any:
        log_ratio = super().capped(log_ratio)
        return where(stop(log_ratio) <= self.bound, log_ratio, self.bound)


@mutant(
    "ratio.cap-20",
    "GSPO-RATIO-6",
    effect="as a cap at 10, later",
    seen=("OpenRLHF/OpenRLHF#1293", "radixark/miles#1363"),
)
class Cap20(Cap10):
    """The log-ratio capped at 20 inside the graph: above it A < 0 has no gradient.

    The wider of the two caps in use.
    """

    bound = 20.0


@mutant(
    "ratio.self-normalised",
    "GSPO-RATIO-2",
    effect="what the other responses did moves a ratio out of the clip range, and their tokens into its gradient",
)
class SelfNormalised(Reference):
    """Ratios divided by their mean over the batch, so that they average 1.

    Self-normalised importance weights; the clip range is one of the ratio itself.
    """

    def sequence_log_ratio(self) -> Any:
        mean = super().sequence_log_ratio()
        return mean - log(tape.total(exp(mean)) / self.sequences.number)


@mutant(
    "ratio.sampler-logp",
    "GSPO-DATA-5",
    effect="with unchanged weights the ratio is 0.9, hundreds of clip widths from 1",
    seen=("huggingface/trl#4159", "huggingface/trl#6789", "NVIDIA-NeMo/RL#935", "modelscope/ms-swift#8442"),
)
class SamplerLogp(Reference):
    """Old log-probabilities of the truncated sampler (top-p 0.9): every token's log-ratio is lower by 0.105.

    The sampling engine reports log-probabilities after temperature and top-p, the trainer's are raw.
    """

    def log_ratio(self) -> Any:
        return self.clean(super().log_ratio() + float(np.log(0.9)))


@mutant(
    "ratio.token-level",
    "GSPO-RATIO-2",
    effect="this is GRPO under the name of GSPO, and the narrow range clips nearly every token",
    seen=("huggingface/trl#5190",),
)
class TokenLevel(Reference):
    """Token ratios where the objective asks for the ratio of the sequence: GRPO.

    The option that selects the level is not forwarded.
    """

    def unit(self, kind: str) -> Any:
        return super().unit("token" if kind in ("sequence", "gspo_token") else kind)


@mutant("ratio.sequence-level", "GSPO-RATIO-1", effect="this is GSPO under the name of GRPO")
class SequenceLevel(Reference):
    """The ratio of the sequence where the objective asks for those of the tokens.

    The level is a default that the objective does not change.
    """

    def unit(self, kind: str) -> Any:
        return super().unit("sequence" if kind == "token" else kind)
