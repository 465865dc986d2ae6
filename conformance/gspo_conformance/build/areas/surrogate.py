"""Surrogates: the clipped minimum of eq. 5 in every quadrant, at every range, and what the relatives put in its place."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from ..cases import Responses, explicit, padded, responses
from ..recipe import Case, Shelf, call, clip, grpo, gspo, gspo_token, loss, objective
from .relatives import CISPO, GMPO, SAPO

RECIPES = Shelf("surrogate")
_add = RECIPES.add

# Mean log-ratios around the paper's range: inside, beyond each bound, on each side of each asymmetry.
BAND = {
    "inside": (1e-4, -1e-4, 2e-4, -2e-4),
    "above": (6e-4, 2e-3, 8e-4, 5e-4),
    "below": (-6e-4, -2e-3, -4.5e-4, -9e-4),
    "mixed": (7e-4, -7e-4, 1.5e-4, -1.5e-4),
    "asymmetric": (3.5e-4 - 2e-5, -3.5e-4 - 2e-5, 3.5e-4 - 2e-5, -3.5e-4 - 2e-5),
}
SIGNS = {"positive": (1.0, 0.5, 2.0, 0.25), "negative": (-1.0, -0.5, -2.0, -0.25), "both": (1.0, -1.25, -0.5, 0.75)}


def paper(
    name: str, means: Sequence[float], advantages: Sequence[float], lengths: Sequence[int] = (5, 9, 3, 6)
) -> Responses:
    """Responses whose sequence ratios sit at `means` while tokens move far more."""
    return responses(f"surrogate/{name}", lengths, means, spread=0.02).also(advantages=advantages)


def _paper_case(objective_: dict[str, Any], place: str, sign: str) -> Case:
    return loss(objective_, padded(paper(f"{place}/{sign}", BAND[place], SIGNS[sign])))


_add(
    "fine-advantages",
    "Advantages that bfloat16 and float16 cannot hold",
    "NUM-1 SURR-1",
    "low-precision-loss",
    lambda: loss(gspo(), padded(paper("fine-advantages", BAND["mixed"], (1 + 2.0**-12, -1.25 - 2.0**-12, -0.5 - 2.0**-13, 0.75 + 2.0**-13)))),
)  # fmt: skip

for _name, _objective in {"gspo": gspo(), "gspo-token": gspo_token()}.items():
    _add(
        f"large-losses-{_name}",
        "|A| of 3.5 to 12 inside the range, as one wrong answer among 32 has: nothing holds the loss of a response",
        "SURR-1 GRAD-1",
        "absolute-bound dual-clip-leak",
        lambda o=_objective: loss(o, padded(paper("large-losses", BAND["inside"], (5.5, -5.0, 3.5, -12.0)))),
    )
    _add(
        f"far-ratios-{_name}",
        "Ratios from e^-9.5 to e^9.5 on the sides that eq. 5 leaves open: whole value and gradient",
        "SURR-1 SURR-2 RATIO-6",
        "exponent-cap dual-clip-leak two-sided-gate",
        lambda o=_objective: loss(
            o, padded(paper("far-ratios", (9.5, -9.5, 5.5, -5.5, 2.5), (-1.0, 1.0, -0.5, 0.75, -0.25), (5, 9, 3, 6, 2)))
        ),
    )
for _place in ("mixed", "asymmetric"):
    _add(
        f"paper-symmetric-{_place}",
        f"The left width of the paper on both sides, 3e-4/3e-4: {_place}",
        "SURR-1 SURR-2 SURR-3",
        "range-inherited two-sided-gate",
        lambda place=_place: loss(
            objective("sequence", clip(3e-4, 3e-4)), padded(paper(f"{place}/both", BAND[place], SIGNS["both"]))
        ),
    )

_PLACES = {
    "inside": "all ratios inside the range 3e-4/4e-4",
    "above": "all ratios above 1+4e-4",
    "below": "all ratios below 1-3e-4",
    "mixed": "ratios beyond both ends and inside",
    "asymmetric": "ratios 3.3e-4 above and 3.7e-4 below 1: inside at the high end, outside at the low end",
}
_OUTCOMES = {"positive": "every A > 0", "negative": "every A < 0", "both": "A of both signs"}
_FLAGS = {
    "inside": "clip-kills-gradient absolute-bound token-clip max-for-min",
    "above": "two-sided-gate max-for-min range-inherited token-clip low-precision-loss",
    "below": "two-sided-gate max-for-min range-inherited token-clip low-precision-loss",
    "mixed": "two-sided-gate max-for-min range-inherited token-clip",
    "asymmetric": "range-swapped",
}
for _place, _where in _PLACES.items():
    for _sign, _which in _OUTCOMES.items():
        for _name, _objective in {"gspo": gspo(), "gspo-token": gspo_token()}.items():
            _add(
                f"paper-{_place}-{_sign}-{_name}",
                f"{_which}, {_where}",
                "SURR-1 SURR-2 SURR-3 GRAD-1" if _name == "gspo" else "SURR-1 SURR-2 SURR-3 RATIO-3 GRAD-3",
                _FLAGS[_place],
                partial(_paper_case, _objective, _place, _sign),
            )

# A twentieth of the range away from each bound, inside and outside.
EDGE = (3.8e-4, 4.2e-4, -2.84e-4, -3.16e-4)
for _sign in ("positive", "negative", "both"):
    _add(
        f"paper-edge-{_sign}",
        f"{_OUTCOMES[_sign]}, ratios a few 1e-5 inside and outside of each bound",
        "SURR-1 SURR-2 SURR-3",
        "range-swapped low-precision-loss",
        lambda sign=_sign: loss(gspo(), padded(paper(f"edge/{sign}", EDGE, SIGNS[sign]))),
    )
for _name, _sign in {"": 1.0, "-flipped": -1.0}.items():
    _add(
        f"paper-one-token{_name}",
        "Responses of one token inside and outside of the paper's range" + (", advantages flipped" if _name else ""),
        "SURR-1 SURR-2 RATIO-2",
        "two-sided-gate max-for-min off-by-one",
        lambda sign=_sign: loss(
            gspo(),
            padded(
                explicit([[2.0**-12], [2.0**-10], [-(2.0**-12)], [-(2.0**-10)]]).also(
                    advantages=[sign, -0.5 * sign, 0.75 * sign, -1.25 * sign]
                )
            ),
        ),
    )

WIDE = ((0.5, -0.75, 0.3125, -0.0625), (1.0, -1.0, -0.75, 0.5))


def _wide_case(objective_: dict[str, Any], flip: float = 1.0) -> Case:
    means, advantages = WIDE
    source = responses("surrogate/wide", [4, 7, 2, 5], means, spread=0.4).also(
        advantages=[flip * a for a in advantages]
    )
    return loss(objective_, padded(source))


_RANGES = {
    "grpo-range": (0.2, 0.27, "the range of GRPO's baseline on the sequence ratio"),
    "log-space": (0.3, 0.4, "0.7 and 1.4 in ratio space; 0.741 and 1.492 if the range were applied to the logarithm"),
    "ppo-range": (0.2, 0.2, "PPO's, which most trainers begin with"),
    "reversed": (0.4, 0.125, "low wider than high: swapped ends show"),
    "one-sided": (0.0625, 1.0, "almost no room below, twofold above"),
}
for _slug, (_low, _high, _what) in _RANGES.items():
    for _name, _ratio in {"gspo": "sequence", "gspo-token": "gspo_token", "token": "token"}.items():
        _add(
            f"{_slug}-{_name}",
            f"Range {_low}/{_high}: {_what}",
            "SURR-1 SURR-2 SURR-3" + (" RATIO-1" if _name == "token" else ""),
            "range-swapped log-space-clip two-sided-gate token-clip",
            partial(_wide_case, objective(_ratio, clip(_low, _high))),
        )
        _add(
            f"{_slug}-{_name}-flipped",
            f"Range {_low}/{_high}, every advantage of the opposite sign",
            "SURR-1 SURR-2 SURR-3" + (" RATIO-1" if _name == "token" else ""),
            "range-swapped log-space-clip two-sided-gate max-for-min",
            partial(_wide_case, objective(_ratio, clip(_low, _high)), -1.0),
        )


def _grid(low: float, high: float, dual: float | None = None) -> Case:
    ratios = np.array([0.25, 0.5, 0.75, 0.875, 0.9375, 1.0, 1.0625, 1.125, 1.25, 1.5, 2.0, 4.0, 16.0])
    x, a = np.meshgrid(ratios, [-1.5, -0.25, 0.0, 0.25, 1.5])
    return call(
        "clipped_surrogate", {"ratio": x, "advantages": a}, "value", clip={"low": low, "high": high, "dual": dual}
    )


_SURROGATE_GRIDS = {
    "grid-grpo": (0.2, 0.27, None, "SURR-1 SURR-2 SURR-12", "max-for-min two-sided-gate range-swapped"),
    "grid-wide": (0.3, 0.4, None, "SURR-1 SURR-2", "log-space-clip range-swapped"),
    "grid-paper": (3e-4, 4e-4, None, "SURR-1 SURR-3", "range-inherited low-precision-loss"),
    "grid-dual": (0.2, 0.27, 3.0, "SURR-5", "dual-clip-leak dual-clip-inert"),
    "grid-dual-low": (0.2, 0.27, 1.375, "SURR-5", "dual-clip-leak dual-clip-inert"),
}
for _slug, (_low, _high, _dual, _clauses, _flags) in _SURROGATE_GRIDS.items():
    _add(
        _slug,
        f"The surrogate alone on a grid of ratios and advantages, range {_low}/{_high}"
        + (f", dual bound {_dual}" if _dual else ""),
        _clauses,
        _flags,
        partial(_grid, _low, _high, _dual),
    )


def _near_band() -> Case:
    steps = np.array([-8e-4, -5e-4, -2.5e-4, -1e-4, 0.0, 1e-4, 3.25e-4, 5e-4, 8e-4])
    x, a = np.meshgrid(np.float32(1.0 + steps).astype(float), [-2.0, -0.5, 0.5, 2.0])
    return call(
        "clipped_surrogate", {"ratio": x, "advantages": a}, "value", clip={"low": 3e-4, "high": 4e-4, "dual": None}
    )


_add(
    "grid-near-one",
    "The surrogate on ratios within 1e-3 of 1: below a unit in the last place of bfloat16, far above one of float32",
    "SURR-1 SURR-3 NUM-1",
    "low-precision-loss range-swapped range-inherited",
    _near_band,
)


def _boundary(sign: float) -> Case:
    # 1.25 and 0.5 are exact, and the ratio is given, so x == bound holds in every dtype.
    x = np.array([1.25, 0.5, 1.25, 0.5])
    return call(
        "clipped_surrogate",
        {"ratio": x, "advantages": sign * np.ones(4)},
        "value",
        clip={"low": 0.5, "high": 0.25, "dual": None},
    )


for _name, _sign in {"positive": 1.0, "negative": -1.0}.items():
    _add(
        f"boundary-value-{_name}",
        "The ratio equals a bound: the value is the bound times A, whichever branch is taken",
        "SURR-4 SURR-1",
        "max-for-min",
        partial(_boundary, _sign),
    )


TIE = "The paper does not say what the derivative of min and clip is at a tie. Convention: the interval is closed, gate 1."


def _on_boundary(ratio_: str, low: float, high: float, sign: float) -> Case:
    """Ratios of exactly 1 and a range of width 0: the ratio is the bound in every dtype."""
    source = explicit([[0.0, 0.0, 0.0], [0.25, -0.25], [0.0], [0.125, -0.125, 0.5, 0.5]])
    source = source.also(advantages=[sign, -0.5 * sign, 0.25 * sign, -0.75 * sign])
    return loss(objective(ratio_, clip(low, high)), padded(source))


for _name, _ratio in {"gspo": "sequence", "gspo-token": "gspo_token", "token": "token"}.items():
    for _slug, (_low, _high, _sign) in {
        "": (0.0, 0.0, 1.0),
        "-low": (0.0, 0.5, -1.0),
        "-high": (0.5, 0.0, 1.0),
    }.items():
        _add(
            f"boundary-gradient{_slug}-{_name}",
            f"Ratios of exactly 1 in a range of {_low}/{_high}, {_name}: the range is closed, the gradient passes whole",
            "SURR-4",
            "boundary",
            partial(_on_boundary, _ratio, _low, _high, _sign),
            level="SHOULD",
            note=TIE,
        )


def _zero_advantage(objective_: dict[str, Any]) -> Case:
    source = responses("surrogate/zero", [3, 5, 4, 2], [2e-3, -2e-3, 1e-4, 0.75], spread=0.05)
    return loss(
        objective_, padded(source.also(advantages=[0.0, 0.0, 1.0, 0.0])), ("loss", "gradient", "metrics.clip_fraction")
    )


_FAMILY: dict[str, dict[str, Any]] = {
    "gspo": gspo(),
    "gspo-token": gspo_token(),
    "grpo": grpo(),
    "sapo": objective("token", SAPO),
    "gmpo": objective("token", GMPO),
    "cispo": objective("token", CISPO, "group_token_mean"),
}
for _name, _objective in _FAMILY.items():
    _add(
        f"zero-advantage-{_name}",
        "A = 0: value and gradient are exactly zero wherever the ratio is, and nothing counts as clipped",
        "SURR-12 GRAD-2",
        "zero-advantage-clipped",
        partial(_zero_advantage, _objective),
    )


def _dual_case(objective_: dict[str, Any]) -> Case:
    means = (1.5, 0.5, -0.75, 2.5)
    source = responses("surrogate/dual", [3, 5, 4, 2], means, spread=0.5).also(advantages=[-1.0, -0.5, -0.25, 1.0])
    return loss(objective_, padded(source))


for _name, _ratio in {"gspo": "sequence", "gspo-token": "gspo_token", "grpo": "token"}.items():
    _add(
        f"dual-clip-{_name}",
        "Dual clip with bound 3: A < 0 and a large ratio stop at 3 A, with no gradient; A > 0 is untouched",
        "SURR-5",
        "dual-clip-leak dual-clip-inert",
        partial(_dual_case, objective(_ratio, clip(0.2, 0.27, 3.0))),
    )
    _add(
        f"no-dual-clip-{_name}",
        "No dual clip: A < 0 and a large ratio keep value and gradient",
        "SURR-5 SURR-2",
        "dual-clip-leak",
        partial(_dual_case, objective(_ratio, clip(0.2, 0.27))),
    )
_add(
    "no-dual-clip-paper",
    "The paper's range, A < 0, ratio 1.01: a dual bound of 1 + 2 eps would cut it",
    "SURR-5 SURR-2",
    "dual-clip-leak",
    lambda: loss(gspo(), padded(paper("no-dual", (0.01, 0.002, 0.03, 0.0625), (-1.0, -0.5, -2.0, -0.25)))),
)
