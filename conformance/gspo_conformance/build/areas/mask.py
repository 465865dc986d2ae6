"""Masks: what stands at uncounted positions reaches nothing, wherever they are and whatever it is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import inf, nan
from typing import Any

from ..cases import Responses, explicit, padded, responses, uniform
from ..recipe import Case, Shelf, aggregation, clip, correction, grpo, gspo, gspo_token, loss, objective, penalty
from .relatives import CISPO_TIGHT, GMPO, REINFORCE, SAPO, VESPO

RECIPES = Shelf("mask")
_add = RECIPES.add

ADVANTAGES = (1.0, -0.75, 0.5, -1.25)
MEANS = (2e-4, 6e-4, -1.5e-4, 1e-4)
LEADING = "000011111 000000111 011111111 000000011"
TURNS = "110011010 010100010 111101111 001000100"
EMPTY = "The paper has no empty response. Convention: ratio 1, contribution 0, counted in G."


def batch(means: Sequence[float] = MEANS, spread: float = 0.05) -> Responses:
    """Four responses of 5, 3, 8 and 2 tokens with ratios inside and beyond the paper's range."""
    return responses("mask/batch", [5, 3, 8, 2], means, spread=spread).also(advantages=ADVANTAGES)


# what a careless scoring pass leaves in the padding: name -> (logp, old_logp, what it is)
GARBAGE: dict[str, tuple[Any, Any, str]] = {
    "finite": (-9.0, -2.5, "plausible log-probabilities of padding, different in the two policies"),
    "zero": (0.0, -11.0, "log-probability 0 under the new policy, -11 under the old"),
    "sentinel": (-1e9, 0.0, "the sentinel -1e9 of a masked softmax"),
    "sentinel-old": (-1.0, -1e9, "the sentinel -1e9 under the old policy: its ratio overflows"),
    "nan": (nan, nan, "NaN under both policies"),
    "nan-new": (nan, -1.0, "NaN under the new policy alone"),
    "infinite": (-inf, -inf, "-inf under both policies: their difference is NaN"),
    "infinite-new": (-inf, -1.0, "-inf under the new policy alone"),
    "positive-infinite": (inf, -1.0, "+inf, as a broken kernel writes it"),
    "overflowing": (200.0, -200.0, "a log-ratio of 400: its exponential overflows, and 0 times infinity is NaN"),
    "mixed": ([nan, inf, -1e9, 7.5, -inf], [-3.0, inf, nan, -1e9, -inf, 2.0], "all of these at once"),
}
_PLACES: dict[str, tuple[str | None, str, str]] = {
    "trailing": (None, "after the response", "DATA-2 NUM-5 GRAD-2"),
    "leading": (LEADING, "before the response", "DATA-2 NUM-5 GRAD-2"),
    "between": (TURNS, "between its turns", "DATA-1 DATA-2 NUM-5 GRAD-2 RATIO-4"),
}


def _garbage(kind: str, place: str, objective_: dict[str, Any] | None = None) -> Case:
    new, old, _ = GARBAGE[kind]
    masks = _PLACES[place][0]
    return loss(objective_ or gspo(), padded(batch(), width=9, masks=masks, fill={"logp": new, "old_logp": old}))


for _kind, (_, _, _what) in GARBAGE.items():
    for _place, (_, _where, _clauses) in _PLACES.items():
        if _place == "leading" and _kind not in (
            "finite",
            "zero",
            "sentinel",
            "sentinel-old",
            "nan",
            "mixed",
            "overflowing",
        ):
            continue
        _add(
            f"{_kind}-{_place}",
            f"Uncounted positions {_where} hold {_what}",
            _clauses,
            "garbage-in-padding padded-length" + (" tool-tokens" if _place == "between" else ""),
            partial(_garbage, _kind, _place),
        )
for _name, _objective in {"gspo-token": gspo_token(), "grpo": grpo()}.items():
    for _kind in ("finite", "nan", "overflowing", "mixed"):
        _add(
            f"{_kind}-{_name}",
            f"Uncounted positions between turns hold {GARBAGE[_kind][2]}; {_name}",
            "DATA-2 NUM-5 GRAD-2" + (" RATIO-1" if _name == "grpo" else " RATIO-3"),
            "garbage-in-padding tool-tokens",
            partial(_garbage, _kind, "between", _objective),
        )


def _same_policy_padding() -> Case:
    """Counted tokens on-policy; only the padding differs between the policies."""
    old = [uniform(f"mask/on-policy/{i}", n, -3.0, -0.25) for i, n in enumerate((4, 2, 6, 1))]
    source = Responses({"logp": old, "old_logp": old}).also(advantages=[1.0, -0.5, 0.25, -2.0])
    return loss(gspo(), padded(source, fill={"logp": -0.5, "old_logp": -4.0}))


_add(
    "padding-alone-differs",
    "Counted tokens are on-policy, the padding is not: every ratio is 1 and nothing is clipped",
    "DATA-2 RATIO-8",
    "garbage-in-padding padded-length rescoring",
    _same_policy_padding,
)


def _numerator_only() -> Case:
    source = explicit([[2.0**-13], [-(2.0**-13)], [3 * 2.0**-14, 0.0], [0.0]]).also(advantages=[1.0, -1.0, 0.5, -0.25])
    return loss(gspo(), padded(source, fill={"logp": -1.0, "old_logp": -51.0}))


_add(
    "numerator-masked",
    "Padding with a log-ratio of 50 beside one-token responses: a sum over the whole row is far too large",
    "DATA-1 DATA-2",
    "mask-half-applied",
    _numerator_only,
)


def _shifted(which: str) -> Case:
    """All of the change sits on the first or the last counted token; its neighbours would change everything."""
    rows = {
        "first": [[0.5, -0.5, 2.0**-12], [0.25, -0.25], [2.0**-12], [0.375, 0.0, -0.375]],
        "last": [[2.0**-12, -0.5, 0.5], [-0.25, 0.25 - 2.0**-9], [-(2.0**-12)], [0.0, -0.375, 0.375]],
    }
    masks = "001110000 011000000 010000000 000111000"
    source = explicit(rows[which]).also(advantages=[1.0, -1.5, 0.5, -0.25])
    return loss(gspo(), padded(source, masks=masks, fill={"logp": -0.25, "old_logp": -3.25}))


for _which in ("first", "last"):
    _add(
        f"{_which}-token",
        f"The {_which} counted token carries half a unit of log-ratio: a mask that is shifted by one loses it",
        "DATA-1 RATIO-4",
        "off-by-one" if _which == "first" else "off-by-one eos-dropped",
        partial(_shifted, _which),
    )


def _singles() -> Case:
    source = explicit([[2.0**-12], [2.0**-10], [-(2.0**-10)], [0.0]]).also(advantages=[1.0, -0.5, 0.75, -1.0])
    masks = "010000000 001000000 000100000 000010000"
    return loss(gspo(), padded(source, masks=masks, fill={"logp": -0.125, "old_logp": -1.5}))


_add(
    "one-token-each",
    "Responses of one token, each at another position of its row: the sequence ratio is the token's",
    "DATA-1 RATIO-2",
    "off-by-one padded-length",
    _singles,
)


def _full() -> Case:
    source = responses("mask/full", [5, 5, 5], [3e-4, -6e-4, 1e-4], spread=0.04).also(advantages=[0.5, 1.0, -0.75])
    return loss(gspo(), padded(source, width=5))


_add("no-padding", "Every position counts: equal lengths, no padding", "DATA-1 AGG-1", "token-sum group-count", _full)


def _inner_pad() -> Case:
    source = responses("mask/turns", [6, 5, 3, 4], [2.5e-4, -1e-4, 6e-4, -5e-4], spread=0.06).also(
        advantages=[-1.0, 0.75, 0.5, -0.5]
    )
    masks = "111001011 011010101 100100001 011001100"
    return loss(gspo(), padded(source, masks=masks, fill={"logp": -0.0625, "old_logp": -0.0625}))


_add(
    "turns",
    "Several turns with tool output between them: one ratio over the tokens of all turns",
    "DATA-1 RATIO-4",
    "turn-ratio tool-tokens",
    _inner_pad,
)


def _empty(fill: Any, count: str = "all") -> Case:
    source = responses("mask/empty", [4, 0, 6, 2], [2e-4, 0.0, -1e-4, 1e-4], spread=0.05).also(
        advantages=[1.0, -2.0, 0.5, -0.75]
    )
    chosen = objective(mode=aggregation(count=count))
    return loss(chosen, padded(source, fill=fill))


for _slug, _fill in {"zeros": 0.0, "nan": nan, "infinite": -inf, "large": {"logp": 100.0, "old_logp": -100.0}}.items():
    _add(
        f"empty-row-{_slug}",
        f"A row without a counted token, padding {_slug}: it contributes 0 and spoils nobody",
        "DATA-3 DATA-2 AGG-7",
        "empty-nan empty-response garbage-in-padding",
        partial(_empty, _fill),
        level="SHOULD",
        note=EMPTY,
    )
_ENDS = responses("mask/ends", [0, 5, 3, 0], [0.0, 3e-4, -2e-4, 0.0], spread=0.04).also(
    advantages=[1.0, 0.5, -1.0, 1.0]
)
_add(
    "empty-row-first",
    "The first and the last row are empty",
    "DATA-3",
    "empty-nan empty-response",
    lambda: loss(gspo(), padded(_ENDS)),
    level="SHOULD",
    note=EMPTY,
)


def _token_advantages(fill: Any) -> Case:
    source = responses("mask/token-advantages", [4, 2, 5, 1], [2e-4, -6e-4, 1e-4, 7e-4], spread=0.05)
    tokens = [uniform(f"mask/advantages/{i}", n, -1.5, 1.5, 2.0**-8) for i, n in enumerate(source.lengths)]
    return loss(gspo_token(), padded(source.tokens(token_advantages=tokens), fill=fill))


_FILLS = {"finite": 50.0, "nan": nan, "infinite": inf}
for _slug, _value in _FILLS.items():
    _add(
        f"token-advantages-{_slug}",
        f"Advantages per token with a value of {_value} at uncounted positions",
        "DATA-2 GRAD-3",
        "garbage-in-padding",
        partial(_token_advantages, {"logp": -1.0, "old_logp": -1.0, "token_advantages": _value}),
    )


def _family(kind: str) -> Case:
    """Garbage in every array that an objective reads."""
    source = responses(
        "mask/family", [5, 3, 8, 2], [0.125, -0.25, 0.0625, -0.03125], spread=0.4, extra=("ref_logp", "behavior_logp")
    )
    source = source.also(advantages=ADVANTAGES)
    fills = {"logp": nan, "old_logp": inf, "ref_logp": nan, "behavior_logp": -inf}
    wanted = ("logp", "old_logp", *_READS[kind][1])
    chosen = Responses({name: rows for name, rows in source.rows.items() if name in wanted}, source.per_response)
    return loss(_READS[kind][0], padded(chosen, masks=TURNS, fill=fills))


_READS: dict[str, tuple[dict[str, Any], tuple[str, ...], str]] = {
    "penalty": (objective(penalty=penalty("k3")), ("ref_logp",), "DATA-2 KL-6"),
    "penalty-importance": (objective("token", clip(0.2, 0.2), penalty=penalty("k3", importance="token")), ("ref_logp",), "DATA-2 KL-5"),
    "correction": (objective("token", clip(0.2, 0.2), correction=[correction("token", "clamp", high=2.0)]), ("behavior_logp",), "DATA-2 CORR-1"),
    "correction-sequence": (objective("sequence", clip(0.2, 0.2), correction=[correction("sequence", "clamp", high=8.0)]), ("behavior_logp",), "DATA-2 CORR-1"),
    "gmpo": (objective("token", GMPO), (), "DATA-2 SURR-9"),
    "cispo": (objective("token", CISPO_TIGHT, "group_token_mean"), (), "DATA-2 SURR-8"),
    "sapo": (objective("token", SAPO), (), "DATA-2 SURR-10"),
    "reinforce": (objective("token", REINFORCE, "token_mean"), (), "DATA-2 SURR-7"),
    "vespo": (objective("product", VESPO, "token_mean"), (), "DATA-2 SURR-11"),
}  # fmt: skip
for _kind, (_, _reads, _clauses) in _READS.items():
    _add(
        f"garbage-{_kind}",
        f"{_kind}: NaN and infinities at the uncounted positions of {', '.join(('logp', 'old_logp', *_reads))}",
        _clauses,
        "garbage-in-padding",
        partial(_family, _kind),
    )
