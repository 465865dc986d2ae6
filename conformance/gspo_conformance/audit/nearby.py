"""Losses with something near the claim: a length or a response more or fewer, advantages of another micro-batch, rounded ratios."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from ..spec_numbers import round_to
from ..tensors import NumPyArray
from .exact import NotComputable
from .recomputed import Recomputed
from .shards import TOKEN_ARRAYS, Broken
from .trace import Part, Tokens, Trace
from .variants import Explanation, Right

MOST_TOKENS, MOST_RESPONSES, MOST_GROUPS = 20_000, 64, 64


def by_responses(few: Sequence[Recomputed], right: Right) -> Iterator[Explanation]:
    """One response of every micro-batch that is in no loss, or in it twice."""
    usable = [
        one for one in few if one.part.tokens.count <= MOST_TOKENS and 1 < one.part.tokens.number <= MOST_RESPONSES
    ]
    if len(usable) < 2 or len(usable) < len(few):
        return
    for name, words, times in (
        ("dropped-response", "not in the loss", -1),
        ("repeated-response", "in the loss twice", 1),
    ):
        with suppress(NotComputable, ValueError):
            found = [_response(one, times, right) for one in usable]
            if all(at is not None for at in found):
                places = (f"{at} of {one.part.place}" for at, one in zip(found, usable, strict=True))
                told = f"one response of every micro-batch is {words}: response {', '.join(list(places)[:3])}"
                told += " and so on" if len(usable) > 3 else ""
                yield Explanation(name, "GSPO-AGG-2", f"{told} (counted from 0)", "it weighs otherwise than the others")
                return


def _response(one: Recomputed, times: int, right: Right) -> int | None:
    """The response that must be left out, or added once more, for the recorded loss."""
    tokens, whole = one.part.tokens, one.truth.numerator
    for at in range(tokens.number):
        left = one.anew(one.objective, without(tokens, np.arange(tokens.number) == at))
        changed = whole + times * (whole - left.numerator)
        count = one.truth.count + times * (one.truth.count - left.count)
        if abs(changed - whole) and any(
            right(one, changed / M) for M in (one.normalizer or one.truth.count, count) if M
        ):
            return at
    return None


def by_lengths(few: Sequence[Recomputed], right: Right) -> Iterator[Explanation]:
    """Ratios of which the sum of log-ratios is divided by more tokens than are summed; by one fewer is a mutant."""
    if few[0].objective.ratio not in ("sequence", "gspo_token"):
        return
    for more in (1, 2):
        with suppress(NotComputable, ValueError):
            if all(right(one, _loss_over(one, more)) for one in few):
                told = (
                    f"the sum of log-ratios is divided by |y| + {more}, a length that counts more tokens than the mask"
                )
                yield Explanation("ratio-length", "GSPO-RATIO-4", told, "the ratio of a short response is too near 1")
                return


def _loss_over(one: Recomputed, more: int) -> float:
    """The loss of sums of log-ratios over |y| and so many tokens more."""
    tokens = one.part.tokens
    if tokens.logp is None or tokens.old_logp is None or one.objective.penalty is not None:
        raise NotComputable("logp, old_logp not recorded, or a penalty that needs both")
    d = np.asarray(tokens.logp, np.float64) - tokens.old_logp
    d = d * tokens.spread(tokens.lengths / (tokens.lengths + more))
    return one.anew(one.objective, replace(tokens, logp=d, old_logp=np.zeros(tokens.count))).loss(one.normalizer)


def by_groups(few: Sequence[Recomputed], right: Right) -> Iterator[Explanation]:
    """Losses in which the responses of one group are missing, divided by all or by those that are left."""
    told: list[str] = []
    for one in few:
        group = next(_missing_group(one, right), None)
        if group is None:
            return
        told.append(f"{group} at step {one.part.step}")
    if told:
        words = f"the responses of group {', of group '.join(dict.fromkeys(told))} are in the trace and not in the loss"
        yield Explanation("dropped-group", "GSPO-AGG-2", words, "what these prompts teach is lost, without a word")


def _missing_group(one: Recomputed, right: Right) -> Iterator[int]:
    tokens = one.part.tokens
    if tokens.groups is None:
        return
    keys = np.unique(tokens.groups)
    for key in keys[:MOST_GROUPS] if len(keys) > 1 else []:
        try:
            left = one.anew(one.objective, without(tokens, tokens.groups == key))
        except NotComputable:
            return
        options = [left.loss(), left.loss(one.truth.count), left.loss(one.normalizer)]
        if any(right(one, loss) for loss in options):
            yield int(key)


def without(tokens: Tokens, dropped: NumPyArray) -> Tokens:
    """The responses that are not dropped."""
    kept = tokens.spread(~dropped)
    number = tokens.number

    def left(values: NumPyArray | None) -> NumPyArray | None:
        return None if values is None else values[~dropped if len(values) == number else kept]

    arrays = {name: None if getattr(tokens, name) is None else getattr(tokens, name)[kept] for name in TOKEN_ARRAYS}
    rest = {name: left(getattr(tokens, name)) for name in ("advantages", "rewards", "groups")}
    return Tokens(np.append(0, np.cumsum(tokens.lengths[~dropped])), **arrays, **rest)


def by_rounding(few: Sequence[Recomputed], right: Right) -> Iterator[Explanation]:
    """Log-ratios that were rounded before they were averaged, ratios, or log-probabilities of one policy alone."""
    for what, words in _ROUNDED.items():
        for name in ("bfloat16", "float16"):
            with suppress(NotComputable, ValueError):
                if all(right(one, _rounded(one, what, name)) for one in few):
                    told = f"it is the loss of {words} rounded to {name} before they are used"
                    yield Explanation("low-precision", "GSPO-NUM-1", told, "1.0003 and 0.9997 are both 1.0 in bfloat16")
                    return


_ROUNDED = {
    "": "log-ratios",
    "ratio": "the ratios",
    "old_logp": "the old log-probabilities alone",
    "logp": "the new log-probabilities alone",
}


def _rounded(one: Recomputed, what: str, name: str) -> float:
    tokens = one.part.tokens
    together = what in ("", "ratio")
    if tokens.logp is None or tokens.old_logp is None or (together and one.objective.penalty is not None):
        raise NotComputable("logp, old_logp not recorded, or a penalty that needs both")
    d = np.asarray(tokens.logp, np.float64) - tokens.old_logp
    if what == "ratio":
        d = d if one.objective.ratio == "token" else tokens.spread(tokens.means(d))
        values = np.log(np.asarray(round_to(np.exp(d), name), np.float64))
    else:
        values = np.asarray(round_to(d if together else np.asarray(getattr(tokens, what)), name), np.float64)
    changed = {"logp": values, "old_logp": np.zeros(tokens.count)} if together else {what: values}
    return one.anew(one.objective, replace(tokens, **changed)).loss(one.normalizer)


def by_other_batches(trace: Trace, few: Sequence[Recomputed], right: Right) -> Iterator[Explanation]:
    """The advantages of another rollout, step, rank or micro-batch."""
    for told, place in _PLACES:
        with suppress(NotComputable, ValueError, Broken):
            if len(few) > 1 and all(right(one, _loss_with(one, _found(trace, one.part, place))) for one in few):
                words = f"the loss is that of the advantages of {told}"
                yield Explanation("advantage.batch", "GSPO-ADV-1", words, "responses are rewarded for what others did")
                return


Place = Callable[[Trace, Part], tuple[int | None, int, int]]


def _found(trace: Trace, part: Part, place: Place) -> Part:
    """The micro-batch at a place, -1 for the last of the step before; raises `NotComputable` where there is none."""
    index, rank, microbatch = place(trace, part)
    index = index - 1 if index is not None and microbatch < 0 else index
    parts = trace.step(index).parts if index in trace.indices and index is not None else ()
    mine = [one for one in parts if one.rank == rank]
    found = next((one for one in mine if one.microbatch == microbatch), mine[-1] if mine and microbatch < 0 else None)
    if found is None or found.tokens.advantages is None:
        raise NotComputable("no such micro-batch")
    return found


def _loss_with(one: Recomputed, other: Part) -> float:
    own, advantages = one.part.tokens.advantages, other.tokens.advantages
    if own is None or advantages is None or own.shape != advantages.shape:
        raise NotComputable("another number of responses")
    return one.anew(one.objective, replace(one.part.tokens, advantages=advantages)).loss(one.normalizer)


def _rollout_before(trace: Trace, part: Part) -> int | None:
    """The step of the same mini-batch in the rollout before."""
    before = (i for i in reversed(trace.indices) if i < part.step)
    for index in before:
        step = trace.step(index)
        if step.rollout is not None and step.rollout != part.rollout and step.minibatch == part.minibatch:
            return index
    return None


_PLACES: tuple[tuple[str, Place], ...] = (
    ("the step before", lambda _, part: (part.step - 1, part.rank, part.microbatch)),
    ("the rollout before", lambda trace, part: (_rollout_before(trace, part), part.rank, part.microbatch)),
    ("the step after", lambda _, part: (part.step + 1, part.rank, part.microbatch)),
    (
        "the next rank",
        lambda trace, part: (part.step, (part.rank + 1) % max(len(trace.ranks), 1), part.microbatch),
    ),
    ("the micro-batch before", lambda _, part: (part.step, part.rank, part.microbatch - 1)),
    ("the micro-batch after", lambda _, part: (part.step, part.rank, part.microbatch + 1)),
)
