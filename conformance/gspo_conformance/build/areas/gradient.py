"""Gradients: the coefficient of every token in closed form, exact zeros, and GSPO-token against GSPO."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ..cases import Responses, explicit, padded, responses, uniform
from ..recipe import Case, Shelf, clip, correction, gspo, gspo_token, loss, objective
from .relatives import GMPO, SAPO, UNCLIPPED, VESPO

RECIPES = Shelf("gradient")
_add = RECIPES.add

ONLY = ("gradient",)


def band(
    name: str, lengths: Sequence[int], means: Sequence[float], advantages: Sequence[float], spread: float = 0.03
) -> Responses:
    """Responses around the paper's range."""
    return responses(f"gradient/{name}", lengths, means, spread=spread).also(advantages=advantages)


def _plain(source: Responses, **layout: Any) -> Case:
    return loss(gspo(), padded(source, **layout), ONLY)


_PLAIN: dict[str, tuple[str, str, str, Responses]] = {
    "coefficient": ("GRAD-1", "-s A / (G |y|) at every token of a response, the same for all", "token-sum token-mean max-for-min",
                    band("coefficient", (3, 7, 1, 9), (2e-4, -1e-4, 1e-4, -2e-4), (1.0, -0.5, 2.0, -1.5))),
    "uneven-tokens": ("GRAD-1 RATIO-2", "Tokens that moved by e^0.5 and e^-0.5: their coefficients are equal all the same (GRPO weighs each by its own ratio)", "arithmetic-mean-ratio token-clip",
                      explicit([[0.5, -0.5], [0.75, -0.25, -0.5, 2.0**-11], [-0.5, 0.5], [0.25]]).also(advantages=[1.0, 0.5, -1.0, -0.5])),
    "clipped-zero": ("GRAD-2 GRAD-1", "Clipped responses get exactly 0, the others their full coefficient", "two-sided-gate clip-kills-gradient range-inherited",
                     band("clipped", (4, 5, 6, 3), (6e-4, -5e-4, 1e-4, -1e-4), (1.0, -1.0, 1.0, -1.0))),
    "outside-but-open": ("GRAD-1 SURR-2", "Outside the range on the side where the gate stays open: s A, not a bound", "two-sided-gate clip-kills-gradient",
                         band("open", (4, 5, 6, 3), (-2e-3, 3e-3, -0.0625, 0.125), (1.0, -1.0, 0.5, -0.75))),
    "all-clipped": ("GRAD-2", "Every response is clipped: the gradient is 0 everywhere", "two-sided-gate clip-kills-gradient range-inherited",
                    band("all-clipped", (4, 2, 5, 3), (1e-3, -1e-3, 2e-3, -2e-3), (0.5, -1.5, 1.0, -0.25))),
    "none-clipped": ("GRAD-1", "Every response is inside the range: the gradient is 0 nowhere", "clip-kills-gradient absolute-bound",
                     band("none-clipped", (4, 2, 5, 3), (1e-4, -1e-4, 2e-4, -2e-4), (0.5, -1.5, 1.0, -0.25))),
    "long": ("GRAD-1 AGG-2", "Responses of 1, 4, 16 and 64 tokens: the coefficients of each add up to s |A| / G", "token-mean token-sum",
             band("long", (1, 4, 16, 64), (1e-4, -1e-4, 2e-4, -2e-4), (1.0, -1.0, 1.0, -1.0))),
    "opposite-pair": ("GRAD-1", "Two responses of one length and opposite advantage: their coefficients nearly cancel, and do not", "group-count max-for-min",
                      band("pair", (6, 6), (2e-4, -2e-4), (1.0, -1.0))),
    "large-ratios": ("GRAD-1 SURR-2", "Ratios up to e^3 where the gate is open: the gradient grows with them", "exponent-cap dual-clip-leak two-sided-gate",
                     band("large", (3, 5, 2, 4), (3.0, 1.5, -2.0, 0.5), (-1.0, -0.5, 0.75, -0.25), 0.5)),
    "large-advantages": ("GRAD-1", "Advantages from 2^-10 to 512: linear in each", "zero-advantage-clipped max-for-min",
                         band("advantages", (3, 4, 2, 5), (1e-4, -1e-4, 2e-4, -2e-4), (512.0, -(2.0**-10), 0.0625, -64.0))),
    "small-advantages": ("GRAD-1", "Advantages from 2^-27 to 2^-17: small is not 0", "zero-advantage-clipped max-for-min",
                         band("small", (3, 4, 2, 5), (1e-4, -1e-4, 2e-4, -2e-4), (2.0**-19, -(2.0**-23), 2.0**-27, -(2.0**-17)))),
    "two-groups": ("GRAD-1 AGG-2", "Six responses of two groups of different size: each weighs 1/6", "group-count mean-of-means",
                   band("groups", (3, 5, 2, 4, 6, 1), (1e-4, -1e-4, 2e-4, -2e-4, 5e-5, -5e-5), (1.0, -1.0, 0.75, -0.25, -0.25, -0.25))),
    "single": ("GRAD-1", "One response of one token: -s A", "token-sum group-count",
               band("single", (1,), (-2e-4,), (-1.5,))),
}  # fmt: skip
for _slug, (_clauses, _title, _flags, _source) in _PLAIN.items():
    _add(_slug, _title, _clauses, _flags, partial(_plain, _source))
_add(
    "padding-zero",
    "The gradient at uncounted positions is exactly 0",
    "GRAD-2 DATA-2",
    "garbage-in-padding padded-length",
    partial(_plain, _PLAIN["coefficient"][3], width=16, fill={"logp": -6.0, "old_logp": -0.5}),
)


def _by_token(
    name: str, lengths: Sequence[int], means: Sequence[float], low: float = -1.5, high: float = 1.5
) -> Responses:
    tokens = [uniform(f"gradient/{name}/A/{i}", n, low, high, 2.0**-8) for i, n in enumerate(lengths)]
    return responses(f"gradient/{name}", lengths, means, spread=0.03).tokens(token_advantages=tokens)


def _token(source: Responses, low: float = 3e-4, high: float = 4e-4) -> Case:
    return loss(gspo_token(low, high), padded(source))


_BY_TOKEN: dict[str, tuple[str, str, Responses]] = {
    "token-inside": ("Advantages that vary by token, ratios inside the range: each token carries its own", "broadcast-ratio token-advantages-averaged",
                     _by_token("inside", (5, 3, 7, 4), (2e-4, -2e-4, 1e-4, -1e-4))),
    "token-above": ("Ratios above the range: tokens with A > 0 are clipped, tokens with A < 0 are not, in one response", "broadcast-ratio token-advantages-averaged two-sided-gate",
                    _by_token("above", (5, 3, 7, 4), (6e-4, 1e-3, 2e-3, 7e-4))),
    "token-below": ("Ratios below the range: tokens with A < 0 are clipped, tokens with A > 0 are not, in one response", "broadcast-ratio token-advantages-averaged two-sided-gate",
                    _by_token("below", (5, 3, 7, 4), (-6e-4, -1e-3, -2e-3, -7e-4))),
    "token-zero-sum": ("Advantages of each response add up to 0: a ratio broadcast with its gradient gives none", "broadcast-ratio token-advantages-averaged",
                       explicit([[2.0**-12, 0.0, -(2.0**-13)], [0.0625, -0.0625], [0.5, -0.5], [2.0**-12] * 4]).tokens(token_advantages=[[1.0, -2.0, 1.0], [-0.5, 0.5], [2.0, -2.0], [0.25, 0.5, -0.5, -0.25]])),
    "token-one-nonzero": ("One token of each response has an advantage, the others exactly 0", "broadcast-ratio token-advantages-averaged zero-advantage-clipped",
                          explicit([[2.0**-12, 0.0, -(2.0**-13), 2.0**-10], [0.0625, -0.0625], [0.5, 0.25, -0.75], [2.0**-12]]).tokens(token_advantages=[[0.0, 0.0, 2.0, 0.0], [-1.0, 0.0], [0.0, 0.0, -0.5], [1.0]])),
    "token-uniform": ("Advantages given per token and all equal: GSPO-token is GSPO", "doubled-gradient broadcast-ratio",
                      band("uniform", (4, 2, 6, 3), (2e-4, 6e-4, -1e-4, 7e-4), (1.0, -0.5, 0.75, 0.25)).tokens(token_advantages=[[1.0] * 4, [-0.5] * 2, [0.75] * 6, [0.25] * 3])),
}  # fmt: skip
for _slug, (_title, _flags, _source) in _BY_TOKEN.items():
    _clauses = "GRAD-3 RATIO-3 GRAD-4" if _slug == "token-uniform" else "GRAD-3 RATIO-3 ADV-14"
    _made = Responses(_source.rows)
    _add(_slug, _title, _clauses, _flags, partial(_token, _made))
for _slug, _low, _high in (("wide", 0.2, 0.27), ("one-sided", 0.0625, 0.5)):
    _add(
        f"token-{_slug}",
        f"Advantages that vary by token, range {_low}/{_high}, ratios on both sides",
        "GRAD-3 RATIO-3 SURR-3",
        "broadcast-ratio token-advantages-averaged two-sided-gate range-swapped",
        partial(_token, _by_token(_slug, (5, 3, 7, 4), (0.5, -0.5, 0.03125, -0.125)), _low, _high),
    )
for _name, _objective in {"gspo": gspo(), "gspo-token": gspo_token()}.items():
    for _slug, (_means, _advantages) in {
        "mixed": ((2e-4, 7e-4, -7e-4, -1e-4), (1.0, 1.0, -1.0, -1.0)),
        "far": ((0.75, -0.5, 0.25, -1.0), (-1.0, 1.0, 1.0, -1.0)),
    }.items():
        _add(
            f"same-{_slug}-{_name}",
            f"One advantage per response, {_slug} ratios: GSPO and GSPO-token agree in value, decision and gradient ({_name})",
            "GRAD-4 GRAD-1" if _name == "gspo" else "GRAD-4 GRAD-3",
            "doubled-gradient ratio-value-lost",
            partial(lambda o, m, a: loss(o, padded(band("same", (4, 2, 6, 3), m, a)), ("loss", "gradient", "metrics.clip_fraction")), _objective, _means, _advantages),
        )  # fmt: skip

# The rows of the closed form that no other area has: a surrogate of a whole response under token weights.
_WEIGHTED: dict[str, tuple[str, dict[str, Any]]] = {
    "product-clip": ("RATIO-7 CORR-1", objective("product", clip(0.2, 0.27))),
    "sequence-unclipped": ("SURR-6 CORR-1", objective("sequence", UNCLIPPED)),
    "sequence-sapo": ("SURR-10 CORR-1", objective("sequence", SAPO)),
    "product-sapo": ("SURR-10 RATIO-7", objective("product", {"kind": "sapo", "tau_pos": 2.0, "tau_neg": 3.0})),
    "gmpo": ("SURR-9 CORR-1", objective("token", {"kind": "gmpo", "low": 0.25, "high": 0.375})),
    "sequence-cispo": ("SURR-8 CORR-1", objective("sequence", {"kind": "cispo", "low": 0.25, "high": 0.25})),
    "sequence-vespo": ("SURR-11", objective("sequence", VESPO)),
    "gspo-token-reinforce": ("SURR-7", objective("gspo_token", {"kind": "reinforce", "gate": {"low": 0.125, "high": 0.25, "dual": 2.0}})),
}  # fmt: skip


def _weighted(objective_: dict[str, Any]) -> Case:
    source = responses("gradient/weighted", [4, 2, 6, 3], (0.1875, -0.25, 0.3125, -0.0625), spread=0.4, extra=("behavior_logp",), extra_spread=0.5)  # fmt: skip
    weights = [correction("token", "clamp", low=0.75, high=1.25)]
    return loss(objective_ | {"correction": weights}, padded(source.also(advantages=[1.0, -0.5, -0.75, 0.25])))


for _slug, (_clauses, _objective) in _WEIGHTED.items():
    _add(
        f"weighted-{_slug}",
        f"{_slug} under token weights: the closed form of GSPO-GRAD-5 with the mean weight of a response",
        f"{_clauses} GRAD-5 CORR-4",
        "correction-not-detached correction-level",
        partial(_weighted, _objective),
    )


def _refused(objective_: dict[str, Any]) -> Case:
    return loss(objective_, padded(Responses(_BY_TOKEN["token-inside"][2].rows)), ("loss",), refuses="advantages")


_REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "sequence": ("the sequence ratio", gspo()),
    "product": ("the product ratio", objective("product", clip(0.2, 0.2))),
    "sequence-unclipped": ("an unclipped sequence ratio", objective("sequence", UNCLIPPED)),
    "sequence-sapo": ("SAPO on the sequence ratio", objective("sequence", SAPO)),
    "gmpo": ("GMPO", objective("token", GMPO)),
}  # fmt: skip
for _slug, (_what, _objective) in _REFUSED.items():
    _add(
        f"refuses-token-advantages-{_slug}",
        f"Advantages per token with {_what} are an error, neither summed nor averaged in silence",
        "ADV-14",
        "bad-call-accepted token-advantages-averaged",
        partial(_refused, _objective),
    )
