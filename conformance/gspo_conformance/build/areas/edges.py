"""Edges: sentences of the clauses that only a batch made for them tells from another reading."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from math import nan
from typing import Any

import numpy as np

from ..cases import Responses, explicit, packed, padded, responses, uniform
from ..levels import SILENT
from ..recipe import Case, Shelf, aggregation, call, clip, correction, gspo, loss, objective, penalty
from . import correction as corrections
from . import penalty as penalties
from .advantage import CONVENTION, HOLES, TENTHS, UNEVEN, group, tokens
from .metrics import CLIPS, COUNTS
from .relatives import GMPO, REINFORCE, UNCLIPPED, VESPO

_SHELVES = {name: Shelf(name) for name in ("advantage", "aggregation", "correction", "metrics", "numerics", "penalty", "ratio", "reward", "surrogate")}  # fmt: skip
_LOSS = ("loss", "gradient")


def _add(id_: str, title: str, clauses: str, flags: str, case: Callable[[], Case], note: str = "") -> None:
    """One recipe by its whole id; SHOULD where it has a note."""
    area, slug = id_.split("/")
    _SHELVES[area].add(slug, title, clauses, flags, case, level="SHOULD" if note else "MUST", note=note)


def _unscored(place: int, refuses: str | None) -> Case:
    rewards = [0.0, 1.0, 0.25, 0.5, 1.0, 0.25, 0.75, 0.0]
    rewards[place] = nan
    case = group(rewards, [0, 0, 0, 0, 1, 1, 1, 1], scale="none", valid=[1, 1, 0, 1, 1, 1, 1, 1])
    return replace(case, refuses=refuses)


_add("advantage/refuses-nan-reward", "A NaN reward of a valid member is an error, not a group of NaN", "ADV-5", "bad-call-accepted", partial(_unscored, 1, "rewards"), "The paper has no reward that is not a number. Convention: an error names it.")  # fmt: skip
_add("advantage/invalid-nan-reward", "A NaN reward of a member that does not count is never read: it was not scored", "ADV-5 ADV-7", "invalid-in-statistics", partial(_unscored, 2, None))  # fmt: skip

_ROWS = [[0.25, -0.5, 0.125, 0.375], [-0.25, 0.5], [0.125, 0.0625, -0.375, 0.25, -0.125], [0.5, -0.25, 0.25]]
_SIGNS = (1.0, -0.5, 0.75, -1.25)


def _small() -> Responses:
    """Four responses; sampler and reference are an eighth away."""
    source = explicit(_ROWS).also(advantages=_SIGNS)
    old = source.rows["old_logp"]
    return source.tokens(behavior_logp=[row + 0.125 for row in old], ref_logp=[row - 0.125 for row in old])


def _one_row(argument: str) -> Case:
    """One row of an array where four are due: whoever broadcasts has an answer."""
    inputs = padded(_small())
    needs = {"ref_logp": {"penalty": penalty()}, "behavior_logp": {"correction": [correction("token", "clamp", high=2.0)]}}  # fmt: skip
    for other in ("ref_logp", "behavior_logp"):
        if other != argument:
            inputs.pop(other)
    inputs[argument] = inputs[argument][:1]
    return loss(objective("token", clip(0.2, 0.2), **needs.get(argument, {})), inputs, ("loss",), refuses=argument)


for _argument, _clause in {"old_logp": "RATIO-1", "ref_logp": "KL-6", "behavior_logp": "CORR-1", "mask": "DATA-1"}.items():  # fmt: skip
    _add(
        f"numerics/refuses-one-row-{_argument.replace('_', '-')}",
        f"`{_argument}` has one row where `logp` has four: an error, shapes are never broadcast",
        _clause,
        "bad-call-accepted shape-broadcast",
        partial(_one_row, _argument),
        note="The paper has no arrays. Convention (notation): an array of another shape is an error that names it.",
    )


def _normalised(given: float) -> Case:
    inputs = padded(explicit(_ROWS).also(advantages=_SIGNS))
    return loss(objective("token", clip(0.2, 0.2)), inputs, ("loss",), normalizer=given, refuses="normalizer")


for _slug, _given in {"zero": 0.0, "negative": -4.0}.items():
    _add(
        f"aggregation/refuses-{_slug}-normalizer",
        f"A normaliser of {_given:g} is an error: the count of a step is positive",
        "AGG-8",
        "bad-call-accepted",
        partial(_normalised, _given),
        "The paper has no normaliser of the caller's. Convention: one that is not positive is an error.",
    )

CAP = "The paper has no cap. Convention: GSPO-RATIO-6 says on what it acts and where its gradient stops."
_FAR = [[1.5, 0.5], [3.0, 1.0, 4.0], [-2.0], [2.5]]


def _capped(ratio: str, surrogate: dict[str, Any], cap: float, *outputs: str) -> Case:
    source = explicit(_FAR, old=-8.0).also(advantages=[-1.0, 0.5, -0.75, 1.0])
    return loss(objective(ratio, surrogate, log_ratio_cap=cap), padded(source), outputs or _LOSS)


_WEIGHTED: dict[str, tuple[str, str, str, dict[str, Any], float]] = {
    "cispo": ("SURR-8", "CISPO: the weight is that of the capped ratio", "token", {"kind": "cispo", "low": None, "high": 8.0}, 1.75),
    "reinforce": ("SURR-7", "REINFORCE: the gate sees the capped ratio", "token", {"kind": "reinforce", "gate": {"low": 0.2, "high": 7.0, "dual": None}}, 1.75),
    "vespo": ("SURR-11 RATIO-7", "VESPO: the kernel sees the capped product", "product", VESPO, 0.5),
}  # fmt: skip
for _slug, (_clauses, _what, _ratio, _surrogate, _cap) in _WEIGHTED.items():
    _add(
        f"ratio/cap-{_slug}",
        f"{_what}, and the log-probability keeps its gradient",
        f"RATIO-6 {_clauses}",
        "exponent-cap clip-kills-gradient",
        partial(_capped, _ratio, _surrogate, _cap),
        note=CAP,
    )


def _gmpo_capped() -> Case:
    rows = [[0.5, 0.125, -0.3125], [0.375, -0.5], [0.3125], [-0.75, 0.5, 0.0625]]
    held = objective("token", GMPO, log_ratio_cap=0.25)
    return loss(held, padded(explicit(rows).also(advantages=_SIGNS)), (*_LOSS, "metrics.clip_fraction"))


_add("ratio/cap-gmpo", "GMPO: a cap of 1/4 on each token comes before its bound of 0.4, which then holds nothing above", "RATIO-6 SURR-9 METRIC-1", "exponent-cap gmpo-clip-after-mean", _gmpo_capped, CAP)  # fmt: skip
_add("metrics/approx-kl-uncapped", "A cap on the log-ratio leaves approx_kl alone: it is of the tokens as they are", "METRIC-3 RATIO-6", "exponent-cap metric-units", partial(_capped, "token", UNCLIPPED, 1.75, "metrics.approx_kl"), CAP)  # fmt: skip
_add(
    "penalty/importance-uncapped-sequence",
    "The cap on the surrogate's sequence ratio leaves the sequence importance of the KL term alone",
    "KL-5 RATIO-6",
    "kl-importance exponent-cap",
    lambda: loss(objective("sequence", clip(0.2, 0.2), penalty=penalty("k2", importance="sequence"), log_ratio_cap=0.03125), padded(penalties.batch()), penalties.OUTPUTS),
    CAP,
)  # fmt: skip
for _ratio in ("sequence", "token"):
    _add(
        f"ratio/boundary-cap-{_ratio}",
        f"Log-ratios of exactly the cap, {_ratio} ratio: the gradient passes",
        "RATIO-6",
        "boundary exponent-cap",
        lambda ratio=_ratio: loss(
            objective(ratio, UNCLIPPED, log_ratio_cap=2.0),
            padded(explicit([[1.5, 2.5], [2.0, 2.0, 2.0, 2.0], [-1.0], [3.0]], old=-8.0).also(advantages=_SIGNS)),
        ),
        note=CAP,
    )
_add(
    "surrogate/boundary-gradient-gmpo",
    "GMPO's tokens exactly at their bound: the gradient passes",
    "SURR-9",
    "boundary",
    lambda: loss(objective("token", {"kind": "gmpo", "low": 0.5, "high": 0.5}), padded(explicit([[0.5, -0.5, 0.25], [-0.5, 0.5], [0.5], [-0.5, 0.125, 0.0, -0.25]]).also(advantages=_SIGNS))),
    "The derivative at a tie is a choice. Convention: at equality the gradient passes.",
)  # fmt: skip
_add(
    "metrics/boundary-cispo",
    "CISPO weights of exactly both bounds, 1 and 1: they are not counted as clipped",
    "METRIC-1 SURR-8",
    "boundary metric-out-of-range",
    lambda: loss(objective("token", {"kind": "cispo", "low": 0.0, "high": 0.0}), padded(explicit([[0.0, 0.5, 0.0], [0.0, -0.25], [0.0], [0.125, 0.0, 0.0, -0.5]]).also(advantages=_SIGNS)), CLIPS),
    "CISPO is not the paper's. Convention: what is at a bound is inside.",
)  # fmt: skip

_add(
    "metrics/cispo-zero-advantage",
    "CISPO weights beyond both bounds where A = 0: they are not counted as clipped",
    "METRIC-1 SURR-12",
    "zero-advantage-clipped",
    lambda: loss(objective("token", {"kind": "cispo", "low": 0.25, "high": 0.25}), padded(explicit(_ROWS).also(advantages=[1.0, 0.0, -0.5, 0.0])), CLIPS),
)  # fmt: skip


def _at_a_clamp(**clamps: float) -> Case:
    away = [[0.75, -0.25, 1.0], [-0.75, 0.5], [0.25], [-0.5, 1.5, -1.0, 0.75]]
    source = explicit([[0.0] * len(row) for row in away], old=-4.0).also(advantages=_SIGNS)
    source = source.tokens(ref_logp=[-4.0 - np.asarray(row) for row in away])
    return loss(objective("token", clip(0.2, 0.2), penalty=penalty("k2", **clamps)), padded(source), penalties.OUTPUTS)


for _slug, _clamps in {"log-ratio": {"log_ratio_clamp": 0.75}, "value": {"value_clamp": 0.125}}.items():
    _add(
        f"penalty/boundary-{_slug}-clamp",
        f"Tokens exactly at the {_slug.replace('-', ' ')} clamp of a KL term: the gradient passes",
        "KL-8 KL-2",
        "boundary kl-clamp",
        partial(_at_a_clamp, **_clamps),
        note="Clamps are an option that the paper does not have. Convention: on a bound the gradient passes.",
    )
_add(
    "penalty/named-again-normalizer",
    "A KL term that names the objective's own aggregation again shares the given normaliser",
    "KL-6 AGG-8",
    "kl-aggregation mean-of-means",
    lambda: loss(objective(penalty=penalty("k3", aggregation=aggregation())), padded(penalties.batch()), penalties.OUTPUTS, normalizer=8.0),
)  # fmt: skip


def _statistics(id_: str, title: str, clauses: str, flags: str, case: Callable[..., Case], **p: Any) -> None:
    note = CONVENTION.format(ddof=p.get("ddof", 1), eps=p.get("eps", 1e-6))
    _add(id_, title, clauses, flags, partial(case, **p), note)


_EIGHT = [0.0, 1.0, 0.25, 0.75, 0.5, 1.0, 0.0, 0.125]
_PAIRS = [3, 3, 1, 1, 8, 8, 8, 8]
_statistics("advantage/undefined-std", "Pairs with ddof 2: the standard deviation is undefined and does not divide", "ADV-1 ADV-2", "ddof", partial(group, _EIGHT, _PAIRS), ddof=2)  # fmt: skip
_statistics("advantage/leave-one-out-pair", "Pairs: the other member alone has no standard deviation, the difference is not divided", "ADV-6 ADV-1", "self-in-baseline ddof", partial(group, _EIGHT, _PAIRS), center="leave_one_out", scale="leave_one_out_std")  # fmt: skip
_statistics("advantage/equal-uncentred", "Equal rewards that nothing is subtracted from: divided by eps alone, not 0", "ADV-3 ADV-7 ADV-1", "switch-ignored eps-placement", partial(group, [0.5] * 4 + _EIGHT[:4], [0] * 4 + [1] * 4), center="none", eps=0.125)  # fmt: skip
_statistics("advantage/batch-std-valid", "The standard deviation of the batch is that of the members that count", "ADV-13 ADV-5", "invalid-in-statistics batch-statistics", partial(group, [0.0, 1.0, 16.0, 0.5, 1.0, -8.0, 0.25, 0.75], [0, 0, 0, 0, 1, 1, 1, 1]), scale="batch_std", valid=[1, 1, 0, 1, 1, 0, 1, 1])  # fmt: skip


def _whiten(values: list[list[float]], center: bool) -> Case:
    inputs = padded(Responses({"values": [np.asarray(row) for row in values]}), fill=-7.0)
    return call("whiten", inputs, "values", fields={"exact": ("values",)}, center=center, ddof=1, eps=1e-8)


_add("advantage/whiten-one-entry", "One counted entry in the batch: it becomes exactly 0", "ADV-10", "singleton", partial(_whiten, [[], [0.75], [], []], True), "The paper does not whiten. Convention: fewer than two entries give exactly 0.")  # fmt: skip
for _slug, _center in {"": True, "-uncentred": False}.items():
    _add(
        f"advantage/whiten-equal{_slug}",
        "Fourteen entries of 0.1 in float32: exactly " + ("0" if _center else "themselves, for nothing is subtracted"),
        "ADV-10",
        "phantom-advantage",
        partial(_whiten, [[TENTHS] * n for n in (4, 3, 5, 2)], _center),
    )


def _outlier() -> Case:
    rows = [uniform(f"edges/whiten/{i}", n, -1.0, 1.0, 2.0**-10) for i, n in enumerate((9, 7, 8, 6))]
    rows[2][3] = 48.0
    return call("whiten", padded(Responses({"values": rows}), fill=-7.0), "values", center=True, ddof=1, eps=1e-8)


_add("advantage/whiten-outlier", "One entry of thirty is five standard deviations away: it stays there", "ADV-10", "whiten-padding", _outlier)  # fmt: skip


def _empty_member() -> Case:
    rows = [uniform(f"edges/reinforce-pp/{i}", n, -1.0, 1.5, 2.0**-10) for i, n in enumerate((4, 0, 5, 2))]
    inputs = padded(Responses({"token_rewards": rows}), fill=5.0) | {"groups": np.array([6, 6, 2, 2])}
    return call("reinforce_pp_advantages", inputs, "advantages", gamma=0.875, ddof=1, eps=1e-8)


_add("advantage/reinforce-pp-empty-member", "A group baseline with an empty response: a member like the others, with total reward 0", "ADV-11 DATA-3", "empty-response group-baseline-ignored", _empty_member, "The paper has no empty response. Convention: it is a member of its group, its total reward is 0.")  # fmt: skip


def _alone(shift: bool, **parameters: Any) -> Case:
    inputs = {"rewards": np.array([0.5, *_EIGHT[1:]]), "groups": np.array([9, 2, 5, 2, 5, 5, 2, 5])}
    return call("normalize_rewards", inputs, "rewards", method="group", shift=shift, scale=not shift, **parameters)


_statistics("reward/group-of-one", "A group of one has no standard deviation: its reward is not divided", "REWARD-2 ADV-1", "singleton ddof", partial(_alone, shift=False), ddof=1, eps=1e-6)  # fmt: skip


def _by_token() -> Case:
    rows = corrections.batch().rows
    signs = [[1.0, -0.5, 0.75, -1.0], [-0.5, 0.25], [0.5, -1.5, -0.25, 1.0, -0.75, 0.5], [-1.25, 1.0, -0.5]]
    weights = [correction("token", "mask", low=0.875, high=1.125, negative_only=True)]
    source = Responses(rows).tokens(token_advantages=signs)
    return loss(objective("token", clip(0.2, 0.2), correction=weights), padded(source))


_add("correction/negative-only-by-token", "Advantages per token of both signs in a response: each token has a weight by its own sign", "CORR-6 ADV-14", "correction-negative-only", _by_token)  # fmt: skip

_statistics("advantage/batch-std-large-eps-variance", "The standard deviation of the batch, eps 1/8 added to its variance, under the root", "ADV-13 ADV-2", "eps-placement", partial(group, *UNEVEN), scale="batch_std", eps=0.125, eps_placement="variance")  # fmt: skip
_add(
    "advantage/invalid-leave-one-out",
    "Leave-one-out where members do not count: the others are those that do",
    "ADV-6 ADV-5",
    "invalid-in-statistics self-in-baseline",
    partial(group, [0.0, 1.0, 100.0, 0.5, 1.0, 0.25, -64.0, 0.75], [0, 0, 0, 0, 1, 1, 1, 1], center="leave_one_out", scale="none", valid=[1, 1, 0, 1, 1, 1, 0, 1]),
)  # fmt: skip

_GAPS = (1, 0, 1, 1, 0, 1, 1, 0, 0, 1, 0, 1, 1, 1, 1, 1)


def _gappy(operation: str, outputs: str, *rows: str, mask: Sequence[int] = _GAPS, **parameters: Any) -> Case:
    """A packed row with gaps within, before and behind its segments; its mask does not end with the last of them."""
    source = tokens(f"edges/{operation}", (5, 3, 4, 2), *rows)
    return call(operation, _holed(packed(source, trailing=2), mask, 5.0), *outputs.split(), **parameters)


def _holed(inputs: dict[str, Any], mask: Sequence[int], fill: float) -> dict[str, Any]:
    counted = (np.asarray(mask) != 0) & (np.arange(len(mask)) < inputs["offsets"][-1])
    held = {name: np.where(counted, row, fill) for name, row in inputs.items() if row.shape == counted.shape}
    return inputs | held | {"mask": np.asarray(mask) != 0}


def _bootstrapped() -> Case:
    case = _gappy("gae_advantages", "advantages returns", "rewards", "values", gamma=0.875, lam=0.75)
    return replace(case, inputs=case.inputs | {"bootstrap": np.array([0.5, -0.25, 0.0, 1.5])})


def _unreadable() -> Case:
    source = tokens("edges/gae/garbage", (4, 3, 5, 2), "rewards", "values")
    inputs = padded(source, masks=HOLES, fill={"rewards": nan, "values": nan})
    return call("gae_advantages", inputs, "advantages", "returns", gamma=0.9375, lam=0.75)


_PACKED = "observation-transitions trailing-segment"
_add("advantage/returns-packed-holes", "Returns in a packed row whose mask has gaps: only counted tokens of the segment are passed", "ADV-8 PACK-1", f"gae-recursion {_PACKED}", partial(_gappy, "reinforce_returns", "returns", "rewards", gamma=0.75))  # fmt: skip
_add("advantage/gae-packed-bootstrap", "GAE in a packed row whose mask has gaps, a value behind every segment", "ADV-9 PACK-1", f"gae-recursion {_PACKED}", _bootstrapped)  # fmt: skip
_add("advantage/gae-garbage", "GAE with NaN in rewards and values of tokens that do not count: they are never read", "ADV-9 NUM-5", "garbage-in-padding observation-transitions", _unreadable, SILENT)  # fmt: skip
_add("advantage/whiten-packed-holes", "Whitening of a packed row whose mask has gaps", "ADV-10 PACK-1", "whiten-padding trailing-segment", partial(_gappy, "whiten", "values", "values", center=True, ddof=1, eps=1e-8))  # fmt: skip


def _charged() -> Case:
    source = tokens("edges/token-kl", (5, 3, 4, 2), "logp", "ref_logp").also(rewards=[1.0, -0.5, 0.25, 2.0])
    rows = {name: [row - 2.0 for row in each] for name, each in source.rows.items()}
    inputs = _holed(packed(replace(source, rows=rows), trailing=2), _GAPS, -5.0)
    return call("token_kl_rewards", inputs, "rewards", coefficient=0.125, estimator="k1")


_add("reward/token-kl-packed-holes", "KL in the reward of a packed row whose mask has gaps: the last counted token, not the last of the segment", "REWARD-4 PACK-1", "reward-on-wrong-token kl-of-padding trailing-segment", _charged)  # fmt: skip


def _counted_in_a_row() -> Case:
    source = responses("edges/counts", [5, 0, 7, 2], (2e-4, 0.0, 7e-4, -1e-4), spread=0.04)
    inputs = packed(source.also(advantages=[1.0, -1.0, 0.5, -0.5]), trailing=2)
    return loss(gspo(), inputs | {"mask": np.asarray(_GAPS) != 0}, COUNTS)


_add("metrics/counts-packed-holes", "A packed row with an empty segment and gaps in its mask: the segment is counted, uncounted tokens are not", "METRIC-6 PACK-3", "empty-response metric-over-padding trailing-segment", _counted_in_a_row, "The paper has no empty response. Convention: it is counted.")  # fmt: skip

_statistics("advantage/leave-one-out-large-eps-variance", "The standard deviation of the others, eps 1/8 added to its variance, under the root", "ADV-6 ADV-2", "eps-placement", partial(group, _EIGHT, [0] * 4 + [1] * 4), center="leave_one_out", scale="leave_one_out_std", eps=0.125, eps_placement="variance")  # fmt: skip
_add(
    "advantage/rloo-equal",
    "Leave-one-out of equal rewards whose rounded mean is another number: exactly 0; ids that are equal modulo 8 are different groups",
    "ADV-6 ADV-3 ADV-5",
    "phantom-advantage group-order",
    lambda: call("leave_one_out_advantages", {"rewards": np.array([float(np.float32(r)) for r in (0.9, 0.7, 0.1)])[[0, 0, 0, 1, 1, 1, 2, 2]], "groups": np.array([3, 3, 3, 11, 11, 11, 19, 19])}, "advantages", fields={"exact": ("advantages",)}),
)  # fmt: skip
_add("reward/group-of-one-shifted", "A group of one, shifted: exactly 0, not its reward", "REWARD-2", "singleton", partial(_alone, shift=True, ddof=1, eps=1e-6))  # fmt: skip
_add(
    "reward/running-equal-batch",
    "A batch of equal rewards, shifted by the running mean: it is another one, and they are not 0",
    "REWARD-3 REWARD-2",
    "running-order",
    lambda: call("normalize_rewards", {"rewards": np.array([0.5] * 8), "history": np.array([0.5, 2.0, -1.0, 0.25, 0.75, 1.5, 0.0]), "history_sizes": np.array([3, 4])}, "rewards", method="running", shift=True, scale=False, ddof=1, eps=1e-6),
)  # fmt: skip
_add("reward/clip-above-one", "Rewards held to 1 to 4: 0 is outside", "REWARD-1", "bounds-ignored range-swapped", lambda: call("clip_rewards", {"rewards": np.array([-20.0, -1.5, 0.0, 0.5, 1.5, 3.0, 10.0, 64.0])}, "rewards", low=1.0, high=4.0))  # fmt: skip


def _unread(operation: str, output: str, row: str, **parameters: Any) -> Case:
    inputs = padded(tokens(f"edges/{operation}/garbage", (4, 3, 5, 2), row), masks=HOLES, fill={row: nan})
    return call(operation, inputs, output, **parameters)


_add("advantage/returns-garbage", "Returns with NaN in rewards of tokens that do not count: they are never read", "ADV-8 NUM-5", "garbage-in-padding observation-transitions", partial(_unread, "reinforce_returns", "returns", "rewards", gamma=0.75), SILENT)  # fmt: skip
_add("advantage/whiten-garbage", "Whitening with NaN in entries that do not count: they are never read", "ADV-10 NUM-5", "garbage-in-padding whiten-padding", partial(_unread, "whiten", "values", "values", center=True, ddof=1, eps=1e-8), SILENT)  # fmt: skip
_add("advantage/reinforce-pp-garbage", "REINFORCE++ with NaN in rewards of tokens that do not count: they are never read", "ADV-11 NUM-5", "garbage-in-padding whiten-padding", partial(_unread, "reinforce_pp_advantages", "advantages", "token_rewards", gamma=0.75, ddof=1, eps=1e-8), SILENT)  # fmt: skip
_add("ratio/product-far", "Products of e^12 and e^-12: used as they are", "RATIO-7 RATIO-6", "exponent-cap", lambda: call("ratio", padded(explicit([[1.5] * 8, [-2.0] * 6, [0.5], [2.0, 2.0, -2.0, 1.0]], old=-8.0)), "ratio", kind="product"), SILENT)  # fmt: skip
_add(
    "aggregation/non-empty-sums",
    "An objective with the mean of token sums over the responses that are not empty",
    "AGG-7 AGG-4",
    "empty-response",
    lambda: loss(objective("token", clip(0.2, 0.2), aggregation("sequence_mean_token_sum", "non_empty")), padded(explicit([_ROWS[0], [], *_ROWS[2:]]).also(advantages=_SIGNS))),
    "Whether empty responses count is a choice the paper does not make; this objective says non_empty.",
)  # fmt: skip
_add(
    "metrics/ratio-mean-reinforce",
    "REINFORCE without a gate has no use for the ratio, and reports it all the same",
    "METRIC-2 SURR-7",
    "metric-units",
    lambda: loss(objective("token", REINFORCE), padded(explicit(_ROWS).also(advantages=_SIGNS)), ("metrics.ratio_mean",)),
)  # fmt: skip


def _charged_around_nothing() -> Case:
    source = tokens("edges/token-kl/empty", (5, 0, 7, 2), "logp", "ref_logp").also(rewards=[1.0, -0.5, 0.25, 2.0])
    rows = {name: [row - 2.0 for row in each] for name, each in source.rows.items()}
    inputs = packed(replace(source, rows=rows), trailing=2, fill=-5.0)
    return call("token_kl_rewards", inputs, "rewards", coefficient=0.125, estimator="k3_plus")


_add("reward/token-kl-packed-empty", "k3_plus in the reward of a packed row with an empty segment: its reward is dropped, not given to a neighbour", "REWARD-4 KL-4 PACK-3", "empty-response reward-on-wrong-token kl-estimator", _charged_around_nothing, "The paper has no empty response. Convention: its reward is dropped.")  # fmt: skip

RECIPES = list(chain.from_iterable(_SHELVES.values()))
