"""What the recorded log-probabilities say of themselves: stale, scored at another temperature, rounded, behind a shifted mask."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np

from ..noise.precision import TELLING
from ..tensors import NumPyArray
from .exact import LEARNING_RATES
from .shards import LOGPS, Broken
from .trace import Part, Step, Tokens

MOST = 200_000
# No rounding makes a log-probability this large; noise that somebody adds may, in a few tokens.
POSITIVE = 0.01
SLOPE, EXPLAINED, ENOUGH = 0.03, 0.5, 16
# Scorings of different tokens have a slope near -1, if not in every step of few: no temperature is that far from another.
UNRELATED, UNLIKE = -0.8, 0.3
# One place apart: far from each other as they stand, and five times nearer when moved.
APART, NEARER = 0.05, 0.2
# How arrays of padded rows come to lie elsewhere than their tokens.
MOVES: tuple[tuple[str, Callable[[NumPyArray], NumPyArray]], ...] = (
    ("one token further", lambda values: np.roll(values, 1, axis=1)),
    ("one token back", lambda values: np.roll(values, -1, axis=1)),
    ("with its responses in reverse order", lambda values: values[::-1]),
    ("one response further", lambda values: np.roll(values, 1, axis=0)),
    ("one response back", lambda values: np.roll(values, -1, axis=0)),
)
# A log-probability that is exactly 0 is that of a sure token, or of none: the other policy tells.
SURE, ALIKE = 0.5, 0.5


@dataclass(frozen=True)
class Gap:
    """The difference of two scorings of the same tokens: its spread, and how much of it goes with the log-probability itself.

    A wrong temperature T' for T makes d = (T/T' - 1) log p + a constant of the context: `slope` is near T/T' - 1 and
    `explained`, the share of the variance along the line, is high. Noise has no slope.
    """

    step: int
    count: int
    mean: float
    std: float
    slope: float
    explained: float
    largest: float

    @property
    def tempered(self) -> bool:
        """Whether it looks like two temperatures."""
        enough = self.count >= ENOUGH and self.std > 1e-3
        return enough and abs(self.slope) >= SLOPE and self.slope > UNRELATED and self.explained >= EXPLAINED

    @property
    def temperature(self) -> float:
        """T'/T, as the slope estimates it."""
        return 1 / max(1 + self.slope, 1e-3)


@dataclass
class Moments:
    """Sums over the counted tokens of a step, part by part, of which a `Gap` is made."""

    count: int = 0
    largest: float = 0.0
    sums: NumPyArray = field(default_factory=lambda: np.zeros(5))

    def add(self, new: NumPyArray | None, old: NumPyArray | None) -> None:
        """The tokens of a part, a regular sample of them where there are many."""
        if new is None or old is None or not new.size:
            return
        stride = max(1, new.size // MOST)
        new, old = (values[::stride].astype(np.float64) for values in (new, old))
        known = np.isfinite(new) & np.isfinite(old)
        old, d = old[known], new[known] - old[known]
        self.count += d.size
        self.largest = max(self.largest, float(np.abs(d).max(initial=0.0)))
        self.sums += [d.sum(), d @ d, old.sum(), old @ old, d @ old]

    def gap(self, step: int) -> Gap | None:
        """Mean, spread and the line of d against the old log-probability."""
        if not self.count:
            return None
        mean, square, old, old_square, product = self.sums / self.count
        variance, spread = max(square - mean**2, 0.0), max(old_square - old**2, 0.0)
        slope = (product - mean * old) / spread if spread > 0 else -float(variance > 0)
        explained = min(slope**2 * spread / variance, 1.0) if variance > 0 else 0.0
        return Gap(step, self.count, float(mean), float(variance**0.5), float(slope), float(explained), self.largest)


@dataclass
class Evidence:
    """What the steps showed: gaps of first mini-batches, and of the sampler; steps with rounded or frozen log-probabilities."""

    first: list[Gap] = field(default_factory=list)
    # Of each rank alone, where a step has several.
    first_of: dict[int, list[Gap]] = field(default_factory=lambda: defaultdict(list))
    sampler: list[Gap] = field(default_factory=list)
    sampler_of_old: list[Gap] = field(default_factory=list)
    rounded: dict[str, list[int]] = field(default_factory=dict)
    frozen: list[int] = field(default_factory=list)
    own_reference: list[int] = field(default_factory=list)
    moving: list[int] = field(default_factory=list)
    shifted: list[int] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    positive: dict[str, list[int]] = field(default_factory=dict)
    unknown: dict[str, tuple[int, str]] = field(default_factory=dict)
    misaligned: dict[tuple[str, str], int] = field(default_factory=dict)
    unscored: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    repeated: dict[tuple[str, str], int] = field(default_factory=dict)
    # How many tokens at the end of each response have no log-probability; nothing once a token is masked.
    ends: list[int] | None = field(default_factory=list)
    minibatches_known: bool = False
    # Later mini-batches with ratios of 1 behind a learning rate of 0; steps that score the responses of an earlier one: as it did, or not.
    idle: list[int] = field(default_factory=list)
    kept: set[int] = field(default_factory=set)
    rescored: set[int] = field(default_factory=set)
    rate: float = 0.0
    # The last rollout with an advantage that is not 0, and the last of these with a learning rate of 0: only the others move the policy.
    _pushed: int | None = -1
    _halted: int | None = -1
    _rates: list[float] = field(default_factory=list)
    _scored: dict[tuple[Any, ...], bytes] = field(default_factory=dict)

    def add(self, step: Step) -> None:
        """What a step shows."""
        own, sampler, sampler_of_old = Moments(), Moments(), Moments()
        own_of: dict[int, Moments] = defaultdict(Moments)
        pushes = False
        scorings: dict[bytes, Part] = {}
        for part in step.parts:
            try:
                tokens = part.tokens
                self._add_part(part, tokens)
                self._add_repeated(part, scorings)
            except Broken:
                continue
            pushes = pushes or _pushes(tokens)
            own.add(tokens.logp, tokens.old_logp)
            own_of[part.rank].add(tokens.logp, tokens.old_logp)
            sampler.add(tokens.logp, tokens.behavior_logp)
            sampler_of_old.add(tokens.old_logp, tokens.behavior_logp)
        _append(self.sampler_of_old, sampler_of_old.gap(step.index))
        self._add_ratios(step, own.gap(step.index), sampler.gap(step.index))
        if step.minibatch == 0 and len(own_of) > 1:
            for rank, moments in own_of.items():
                _append(self.first_of[rank], moments.gap(step.index))
        halted = self._is_halted(step)
        if pushes and halted:
            self._halted = step.rollout
        elif pushes:
            self._pushed = step.rollout

    def _add_part(self, part: Part, tokens: Tokens) -> None:
        """What a micro-batch shows by itself."""
        if _shifted(part):
            self.shifted.append(part.step)
        if _prompts_counted(part):
            self.prompts.append(part.step)
        if _own_reference(tokens) and part.step not in self.own_reference[-1:]:
            self.own_reference.append(part.step)
        unscored = dict(_unscored(tokens))
        for name, count in unscored.items():
            self.unscored.setdefault(name, []).append((part.step, count))
        ends = _ends(part)
        self.ends = None if self.ends is None or ends is None else self.ends + ends
        for apart in () if unscored else _misaligned(part, tokens):
            self.misaligned.setdefault(apart, part.step)
        self._add_rounding(part.step, tokens)
        self._add_scoring(part, tokens)
        self._add_signs(part.step, tokens)
        self._add_unknown(part, tokens)

    def _add_repeated(self, part: Part, scorings: dict[bytes, Part]) -> None:
        """Whether a micro-batch has the `logp` of another of its step to the last bit, and another `old_logp`."""
        new = part.array("logp")
        if new is None or np.unique(new).size < ENOUGH:
            return
        first = scorings.setdefault(_digest(new), part)
        old, other = part.array("old_logp"), first.array("old_logp")
        if first is not part and old is not None and other is not None and not np.array_equal(old, other):
            name = f"micro-batch {first.microbatch}" + f" of rank {first.rank}" * (first.rank != part.rank)
            self.repeated.setdefault((f"micro-batch {part.microbatch}", name), part.step)

    def _is_halted(self, step: Step) -> bool:
        """Whether its learning rate is 0, or that reported with the step before: many report the next one."""
        rates = [part.metrics[name] for part in step.parts for name in LEARNING_RATES if name in part.metrics]
        self._rates = [*self._rates[-1:], max(rates)] if rates else []
        self.rate = max(self.rate, *rates) if rates else self.rate
        return 0.0 in self._rates

    def _add_scoring(self, part: Part, tokens: Tokens) -> None:
        """Whether `old_logp` is what it was when these responses, known by what the sampler or the reference says of them, were seen last."""
        known = [values for values in (tokens.behavior_logp, tokens.ref_logp) if values is not None]
        if not known or tokens.old_logp is None or part.rollout is None:
            return
        if self._scored and next(iter(self._scored))[0] != part.rollout:
            self._scored.clear()
        digest, key = _digest(tokens.old_logp), (part.rollout, _digest(tokens.lengths), *map(_digest, known))
        if key in self._scored:
            (self.kept if self._scored[key] == digest else self.rescored).add(part.step)
        self._scored[key] = digest

    def _add_ratios(self, step: Step, own: Gap | None, sampler: Gap | None) -> None:
        if step.minibatch is None or own is None:
            return
        self.minibatches_known = True
        if step.minibatch == 0:
            self.first.append(own)
            _append(self.sampler, sampler)
        elif own.largest > 0:
            self.moving.append(step.index)
        elif self._pushed == step.rollout:
            self.frozen.append(step.index)
        elif self._halted == step.rollout:
            self.idle.append(step.index)

    def _add_signs(self, step: int, tokens: Tokens) -> None:
        for name in LOGPS:
            values = getattr(tokens, name)
            if values is not None and values.size and np.mean(values > POSITIVE) > 0.5:
                steps = self.positive.setdefault(name, [])
                if step not in steps[-1:]:
                    steps.append(step)

    def _add_unknown(self, part: Part, tokens: Tokens) -> None:
        """Responses with counted log-probabilities, or advantages, that are not numbers: how many, and where the first is."""
        for name in ("logp", "old_logp", "ref_logp", "advantages"):
            values = getattr(tokens, name)
            if values is None or np.isfinite(values).all():
                continue
            bad = ~np.isfinite(values)
            each = bad if len(bad) == tokens.number else tokens.sums(bad) > 0
            count, first = self.unknown.get(name, (0, f"{part.place}, response {int(np.argmax(each))}"))
            self.unknown[name] = (count + int(each.sum()), first)

    def _add_rounding(self, step: int, tokens: Tokens) -> None:
        for name in ("logp", "old_logp"):
            values = getattr(tokens, name)
            if values is None or values.dtype != np.float32:
                continue
            values = values[np.abs(values) >= TELLING]
            if values.size >= ENOUGH and _rounded(values):
                self.rounded.setdefault(name, []).append(step)


def _pushes(tokens: Tokens) -> bool:
    """Whether an advantage is not 0, or unknown."""
    return tokens.count > 0 and (tokens.advantages is None or bool(np.any(tokens.advantages != 0)))


def _digest(values: NumPyArray) -> bytes:
    return blake2b(np.ascontiguousarray(values).tobytes(), digest_size=16).digest()


def _own_reference(tokens: Tokens) -> bool:
    """Whether the reference policy scored every token as the new one does, which the old one did not."""
    new, old, reference = tokens.logp, tokens.old_logp, tokens.ref_logp
    if new is None or old is None or reference is None or not np.array_equal(new, reference):
        return False
    return bool(np.count_nonzero(new != old) >= ENOUGH)


def _append(gaps: list[Gap], found: Gap | None) -> None:
    if found is not None:
        gaps.append(found)


def _unscored(tokens: Tokens) -> Iterator[tuple[str, int]]:
    """Where most counted log-probabilities of exactly 0 are, by the other policy, of tokens that were not sure: how many."""
    new, old = tokens.logp, tokens.old_logp
    if new is None or old is None or not _are_of_one_text(new, old):
        return
    for name, values, other in (("logp", new, old), ("old_logp", old, new)):
        zero = values == 0
        unlike = int(np.count_nonzero(zero & (other < -SURE)))
        if 2 * unlike > np.count_nonzero(zero):
            yield name, unlike


def _ends(part: Part) -> list[int] | None:
    """How many tokens at the end of each padded row are exactly 0 in both policies; None where a token is masked, or a row all 0."""
    mask, new, old = (part.array(name) for name in ("mask", "logp", "old_logp"))
    if mask is None or new is None or old is None or mask.ndim != 2 or not mask.all():
        return None
    if not len(mask):
        return []
    scored = (new != 0) | (old != 0)
    return scored[:, ::-1].argmax(axis=1).tolist() if scored.any(axis=1).all() else None


def _are_of_one_text(new: NumPyArray, old: NumPyArray) -> bool:
    """Whether two scorings go together, where both are scored."""
    both = (new != 0) & (old != 0)
    spread = new[both].astype(np.float64), old[both].astype(np.float64)
    if np.count_nonzero(both) < ENOUGH or min(values.std() for values in spread) == 0:
        return True
    return bool(np.corrcoef(*spread)[0, 1] > ALIKE)


def _misaligned(part: Part, tokens: Tokens) -> Iterator[tuple[str, str]]:
    """Scorings that are `logp` of the next token, of the one before, or of another response, rather than of the same; in words."""
    for name in ("old_logp", "behavior_logp"):
        other = getattr(tokens, name)
        if tokens.logp is None or other is None or tokens.count < ENOUGH:
            continue
        new, old = (np.asarray(values[:MOST], np.float64) for values in (tokens.logp, other))
        straight = float(np.abs(new - old).mean())
        if straight > APART:
            inner = np.ones(new.size, bool)
            inner[tokens.offsets[:-1][(tokens.offsets[:-1] < new.size) & (tokens.lengths > 0)]] = False
            moved = {"after": np.abs(new[1:] - old[:-1]), "before": np.abs(new[:-1] - old[1:])}
            near = [way for way, off in moved.items() if _nearer(off[inner[1:]], straight)]
            yield from ((name, f"of a token is logp of the token {way} it") for way in near)
            yield from ((name, f"is logp {words}") for words in _reordered(part, name, straight))


def _reordered(part: Part, name: str, straight: float) -> Iterator[str]:
    """In which order of the responses of a batch a scoring is `logp`, where both count."""
    mask, new, old = (part.array(one) for one in ("mask", "logp", name))
    if new is None or old is None or mask is None or mask.ndim != 2:
        return
    for words, move in MOVES[2:]:
        if _nearer(np.abs(new - move(old))[(mask & move(mask)).astype(bool)], straight):
            yield words
            return


def _nearer(off: NumPyArray, straight: float) -> bool:
    return off.size >= ENOUGH and float(off.mean()) < NEARER * straight


def _rounded(values: NumPyArray) -> bool:
    """Whether every value is a bfloat16's, though float32 holds them."""
    bits = np.ascontiguousarray(values[:: max(1, values.size // MOST)]).view(np.uint32)
    return not np.any(bits & 0xFFFF)


def _shifted(part: Part) -> bool:
    """Whether what the sampler scored (not 0, not NaN) lies one place beside what the mask counts, in padded rows."""
    mask, sampled = part.array("mask"), part.array("behavior_logp")
    if mask is None or sampled is None or mask.ndim != 2 or mask.shape[1] < 2:
        return False
    scored = np.isfinite(sampled) & (sampled != 0)
    if scored.all() or not mask.any() or np.array_equal(scored, mask):
        return False
    return np.array_equal(scored[:, :-1], mask[:, 1:]) or np.array_equal(scored[:, 1:], mask[:, :-1])


def _prompts_counted(part: Part) -> bool:
    """Whether in every padded row the mask begins before the first token that the sampler scored, and counts what it scored."""
    mask, sampled = part.array("mask"), part.array("behavior_logp")
    if mask is None or sampled is None or mask.ndim != 2 or not mask.any():
        return False
    scored = np.isfinite(sampled) & (sampled != 0)
    before = np.arange(mask.shape[1]) < scored.argmax(axis=1)[:, None]
    extra = mask & ~scored
    exact = not (scored & ~mask).any() and not (extra & ~before).any()
    return exact and bool(scored.any(axis=1).all() and extra.any(axis=1).all())
