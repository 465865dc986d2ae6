"""Numerics: narrow inputs, long responses, accumulators, overflow, float64, and inputs that are errors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import inf, nan
from typing import Any

import numpy as np

from ..cases import Responses, explicit, packed, padded, responses, uniform
from ..recipe import Case, Shelf, aggregation, call, clip, grpo, gspo, gspo_token, loss, objective
from .relatives import CISPO, SAPO, VESPO

RECIPES = Shelf("numerics")
_add = RECIPES.add

# In float64 thousands of tokens added left to right are 1e-12 off, hundreds of units, and wide enough (NUM-4).
IN_FLOAT32: dict[str, Any] = {"dtype": ("float32",)}
# A multiple of this below 4 in magnitude is exact in the dtype.
QUANTA = {"bfloat16": 2.0**-6, "float16": 2.0**-9}


def narrow(
    dtype: str, name: str, lengths: Sequence[int], means: Sequence[float], advantages: Sequence[float]
) -> Responses:
    """Log-probabilities that the narrow dtype holds exactly, with the means that its quantum allows."""
    quantum = QUANTA[dtype]
    return responses(f"numerics/{dtype}/{name}", lengths, means, spread=0.25, quantum=quantum).also(
        advantages=advantages
    )


def _narrow(dtype: str, objective_: dict[str, Any], source: Responses, layout: Any = padded) -> Case:
    return loss(objective_, layout(source), dtype=("float32",), input_dtype=dtype)


_NARROW: dict[str, tuple[str, str, str, dict[str, Any], tuple[Sequence[int], Sequence[float], Sequence[float]]]] = {
    "inside": ("NUM-1", "mean log-ratios of 1e-4 to 3e-4, inside a range that the dtype itself cannot resolve", "low-precision-loss", gspo(), ((64, 96, 128, 80), (2.5e-4, -1.7e-4, 1.3e-4, 0.0), (1.0, -1.0, 0.5, -0.5))),
    "outside": ("NUM-1 SURR-2", "ratios of 0.998 to 1.003: beyond the range, and 1 in the dtype itself", "low-precision-loss range-inherited", gspo(), ((64, 96, 128, 80), (1e-3, -1e-3, 3e-3, -2e-3), (1.0, -1.0, -0.5, 0.5))),
    "long": ("NUM-1 NUM-4", "512 tokens: an accumulator in the dtype of the inputs loses the mean", "low-precision-loss low-precision-accumulator", gspo(), ((512, 320), (2.5e-4, -2.5e-4), (1.0, -1.5))),
    "large-ratios": ("NUM-1", "ratios from e^-0.5 to e^0.5, range 0.2/0.27", "low-precision-loss", gspo(0.2, 0.27), ((8, 5, 9, 3), (0.5, -0.5, 0.125, -0.0625), (-1.0, 1.0, 0.5, -0.75))),
    "gspo-token": ("NUM-1 RATIO-3", "GSPO-token inside its range", "low-precision-loss", gspo_token(), ((64, 96, 128, 80), (2.5e-4, -1.7e-4, 1.3e-4, 5e-4), (1.0, -1.0, 0.5, -0.5))),
    "grpo": ("NUM-1 RATIO-1", "GRPO: token ratios around 0.8 and 1.27", "low-precision-loss", grpo(), ((8, 5, 9, 3), (0.125, -0.25, 0.0625, 0.1875), (1.0, -1.0, 0.5, -0.5))),
    "token-mean": ("NUM-1 AGG-3", "token mean over 300 tokens", "low-precision-loss low-precision-accumulator", objective("token", clip(0.2, 0.2), "token_mean"), ((120, 60, 90, 30), (0.0625, -0.03125, 0.015625, 0.125), (1.0, -0.5, 0.25, -1.0))),
}  # fmt: skip
for _dtype in QUANTA:
    for _slug, (_clauses, _what, _flags, _objective, _batch) in _NARROW.items():
        _add(
            f"{_dtype}-{_slug}",
            f"Log-probabilities stored in {_dtype}: {_what}",
            _clauses,
            _flags,
            partial(lambda d, s, o, b: _narrow(d, o, narrow(d, s, *b)), _dtype, _slug, _objective, _batch),
        )
    _add(
        f"{_dtype}-packed",
        f"Log-probabilities stored in {_dtype}, packed",
        "NUM-1 PACK-1",
        "low-precision-loss packed-one-ratio",
        partial(lambda d: _narrow(d, gspo(), narrow(d, "packed", *_NARROW["inside"][4]), packed), _dtype),
    )
    _add(
        f"{_dtype}-on-policy",
        f"Log-probabilities stored in {_dtype}, on-policy: the ratio is exactly 1",
        "NUM-1 RATIO-8",
        "low-precision-loss rescoring",
        partial(lambda d: _narrow_on_policy(d), _dtype),
    )


def _narrow_on_policy(dtype: str) -> Case:
    old = [uniform(f"numerics/{dtype}/same/{i}", n, -3.0, -0.25, QUANTA[dtype]) for i, n in enumerate((8, 5, 9, 3))]
    source = Responses({"logp": old, "old_logp": old}).also(advantages=[1.0, -0.5, 0.25, -2.0])
    return _narrow(dtype, gspo(), source)


BLOCKS = 16384


def _steps(
    first: float, second: float, old: float, advantage: float, objective_: dict[str, Any], dtype: str | None = None
) -> Case:
    """32,768 tokens in two blocks of constant log-ratio, beside a response of three tokens."""
    long = np.concatenate([np.full(BLOCKS, first), np.full(BLOCKS, second)])
    source = Responses({"logp": [old + long, np.full(3, old)], "old_logp": [np.full(2 * BLOCKS, old), np.full(3, old)]})
    stored: dict[str, Any] = {"input_dtype": dtype} if dtype else {}
    return loss(objective_, padded(source.also(advantages=[advantage, -0.5]), fill=old), **IN_FLOAT32, **stored)


_MILLI = -1.5 * 2.0**-10
_add(
    "accumulator",
    "32,768 log-ratios of -0.0015: an accumulator in bfloat16 stalls at a hundredth of the sum, in float16 at a tenth",
    "NUM-4 RATIO-2",
    "low-precision-accumulator low-precision-loss",
    lambda: _steps(_MILLI, _MILLI, -0.5, 1.0, gspo()),
)
_add(
    "accumulator-cancelling",
    "16,384 log-ratios of +1/64 and as many of -1/64, less a little: the partial sums are a million times the result",
    "NUM-4 RATIO-2",
    "low-precision-accumulator sum-before-subtract",
    lambda: _steps(2.0**-6 + 2.0**-13, -(2.0**-6), -2.0, 1.0, gspo()),
)
_add(
    "accumulator-token-mean",
    "32,768 tokens and 3 under a token mean: token values near 1 add up to more than float16 can count",
    "NUM-4 AGG-3",
    "low-precision-accumulator",
    lambda: _steps(2.0**-7, -(2.0**-7), -1.5, 1.0, objective("token", clip(0.2, 0.2), "token_mean")),
)
_add(
    "accumulator-float16-input",
    "32,768 log-probabilities of -3 stored in float16: their sum overflows there, their differences do not",
    "NUM-4 NUM-1 RATIO-5",
    "low-precision-accumulator sum-before-subtract",
    lambda: _steps(2.0**-9, -(2.0**-8), -3.0, 1.0, gspo(), "float16"),
)
_add(
    "accumulator-bfloat16-input",
    "32,768 log-probabilities stored in bfloat16",
    "NUM-4 NUM-1",
    "low-precision-accumulator low-precision-loss",
    lambda: _steps(2.0**-8, -(2.0**-9), -0.25, -1.0, gspo(), "bfloat16"),
)
_add(
    "drift",
    "Every one of 32,768 tokens is 0.3% likelier: the product over the response overflows, the sequence ratio is 1.003",
    "RATIO-2 NUM-3",
    "no-length-normalisation",
    lambda: _steps(3 * 2.0**-10, 3 * 2.0**-10, -1.0, -1.0, gspo()),
)


def long_responses(longest: int) -> Responses:
    """Two long responses with noise as between two scoring passes, a hundred times the range."""
    source = responses(f"numerics/long/{longest}", [longest, 5000], [2e-4, -2.5e-4], spread=0.1)
    return source.also(advantages=[1.0, -0.75])


_add(
    "long-gspo",
    "Responses of 32,768 and 5,000 tokens whose log-ratios are a hundred times the range",
    "RATIO-2 RATIO-5 NUM-4 AGG-2",
    "sum-before-subtract token-mean low-precision-accumulator",
    lambda: loss(gspo(), padded(long_responses(32768)), store="long", **IN_FLOAT32),
)
_add(
    "long-gspo-token",
    "GSPO-token on responses of 8,192 and 5,000 tokens",
    "RATIO-3 NUM-4 GRAD-3",
    "sum-before-subtract doubled-gradient",
    lambda: loss(gspo_token(), padded(long_responses(8192)), store="long-8192", **IN_FLOAT32),
)
_add(
    "long-packed",
    "Responses of 8,192 and 5,000 tokens packed in one row",
    "PACK-1 RATIO-2 NUM-3",
    "packed-one-ratio cumulative-sum",
    lambda: loss(gspo(), packed(long_responses(8192)), store="long-packed", **IN_FLOAT32),
)


def unlikely(place: str, low: float, high: float, quantum: float) -> Responses:
    """Log-probabilities from `low` to `high`, as finely resolved as float32 can hold; log-ratios of a few 1e-3."""
    lengths = [7, 5, 9, 6]
    ratios = [uniform(f"{place}/d/{i}", n, -0.002, 0.002, quantum) for i, n in enumerate(lengths)]
    old = [uniform(f"{place}/old/{i}", n, low, high, quantum) for i, n in enumerate(lengths)]
    return Responses({"logp": [o + d for o, d in zip(old, ratios, strict=True)], "old_logp": old})


_UNLIKELY = partial(unlikely, "numerics/unlikely", -200.0, -120.0, 2.0**-16)
_HARDLY_POSSIBLE = partial(unlikely, "numerics/hardly-possible", -2000.0, -1200.0, 2.0**-13)
for _name, _objective in {"gspo": gspo(), "wide": gspo(0.2, 0.2)}.items():
    _add(
        f"unlikely-tokens-{_name}",
        f"Log-probabilities near -160: the sums of either policy round to 1e-4, the differences are exact ({_name})",
        "RATIO-5 NUM-4",
        "sum-before-subtract",
        partial(lambda o: loss(o, padded(_UNLIKELY().also(advantages=[-1.0, 0.5, -0.75, 1.0]))), _objective),
    )
for _name, _source, _near in (("unlikely", _UNLIKELY, -160), ("hardly-possible", _HARDLY_POSSIBLE, -1600)):
    _add(
        f"{_name}-tokens-ratio",
        f"Log-probabilities near {_near}: the sequence ratio itself",
        "RATIO-5",
        "sum-before-subtract",
        partial(lambda source: call("ratio", padded(source()), "ratio", kind="sequence"), _source),
    )
_add(
    "hardly-possible-tokens-gspo",
    "Log-probabilities near -1600: the means of either policy round to 1e-4, the differences are exact",
    "RATIO-5",
    "sum-before-subtract",
    lambda: loss(gspo(0.2, 0.2), padded(_HARDLY_POSSIBLE().also(advantages=[-1.0, 0.5, -0.75, 1.0]))),
)


def far(rows: Sequence[Sequence[float]], advantages: Sequence[float]) -> Responses:
    """Log-ratios written out over an old log-probability that leaves room for them."""
    return explicit(rows, old=-256.0).also(advantages=advantages)


_FAR: dict[str, tuple[str, str, str, dict[str, Any], Responses]] = {
    "overflow-clipped": ("NUM-3 GRAD-2", "A mean log-ratio of 100 with A > 0: e^100 overflows float32, the value is the bound, the gradient 0", "overflow-nan", gspo(),
                         far([[100.0, 100.0, 100.0], [2.0**-12, 0.0], [-(2.0**-12)], [120.0]], [1.0, -0.5, 0.75, 2.0])),
    "overflow-zero-advantage": ("NUM-3 SURR-12", "A mean log-ratio of 200 with A = 0: exactly nothing", "overflow-nan zero-advantage-clipped", gspo(),
                                far([[200.0, 200.0], [2.0**-12, 0.0], [-(2.0**-12)], [150.0, 100.0]], [0.0, -0.5, 0.75, 0.0])),
    "overflow-token": ("NUM-3 GRAD-2", "Token ratios that overflow with A > 0 in GRPO", "overflow-nan", grpo(),
                       far([[100.0, 0.0625, -0.125], [0.125, 110.0], [-0.0625], [0.25]], [1.0, 0.5, -0.75, -0.5])),
    "overflow-token-zero": ("NUM-3 SURR-12", "Token ratios that overflow with A = 0 in GRPO", "overflow-nan", grpo(),
                            far([[100.0, 0.0625, -0.125], [0.125, 110.0], [-0.0625], [0.25]], [0.0, 0.0, -0.75, -0.5])),
    "overflow-gspo-token": ("NUM-3 GRAD-2", "The sequence ratio of GSPO-token overflows with A > 0", "overflow-nan", gspo_token(),
                            far([[100.0, 100.0, 100.0], [2.0**-12, 0.0], [-(2.0**-12)], [0.0]], [1.0, -0.5, 0.75, -0.25])),
    "overflow-dual": ("NUM-3 SURR-5", "A ratio that overflows with A < 0 under a dual clip: 3 A, no gradient", "overflow-nan dual-clip-inert", objective("sequence", clip(0.2, 0.27, 3.0)),
                      far([[100.0, 100.0], [0.0625, -0.125], [0.25], [0.0]], [-1.0, 0.5, -0.75, 1.0])),
    "overflow-sapo": ("NUM-3 SURR-10", "SAPO where the ratio overflows: the gate is 1, its slope 0, not NaN", "overflow-nan", objective("token", SAPO),
                      far([[100.0, 0.25], [-0.5, 120.0], [0.125, -0.25], [0.5]], [1.0, -0.5, 0.75, -0.25])),
    "overflow-vespo": ("NUM-3 SURR-11", "VESPO where the product ratio overflows: the weight is 0", "overflow-nan weight-not-detached", objective("product", VESPO, "token_mean"),
                       far([[60.0, 60.0], [-0.25, 0.125], [70.0, 50.0, 10.0], [0.25]], [1.0, -0.5, -0.75, 0.25])),
    "overflow-cispo": ("NUM-3 SURR-8", "CISPO where the ratio overflows: the weight is its bound", "overflow-nan", objective("token", CISPO, "token_mean"),
                       far([[100.0, 0.25], [-0.5, 120.0], [0.125, -0.25], [0.5]], [1.0, -0.5, 0.75, -0.25])),
    "underflow": ("NUM-3 SURR-2", "Mean log-ratios of -60 and -80: with A > 0 next to nothing, with A < 0 the bound", "overflow-nan two-sided-gate", gspo(),
                  far([[-60.0, -60.0], [-80.0, -80.0, -80.0], [2.0**-12], [0.0]], [1.0, -0.5, 0.75, -0.25])),
    "cancelling-overflow": ("NUM-3 RATIO-2", "Log-ratios of 120 and -120 in one response: no token's exponential is needed", "overflow-nan token-clamp arithmetic-mean-ratio", gspo(),
                            far([[120.0, -120.0, 0.0625], [-100.0, 100.5], [2.0**-12, 2.0**-12], [0.0]], [-1.0, -0.5, 0.75, 0.25])),
    "token-clamp": ("RATIO-2 RATIO-6", "Log-ratios of 40 and -39.5 with A < 0: a clamp of each token at 20 gives a quarter of the mean", "token-clamp exponent-cap", gspo(),
                    far([[40.0, -39.5], [32.0, -32.5, 1.25], [0.0, 2.0**-12], [0.0]], [-1.0, -0.5, 0.75, 0.25])),
    "token-clamp-uneven": ("RATIO-2 RATIO-6", "Log-ratios of 32, -16 and -15.5 with A < 0: what a clamp of each token leaves tells its width", "token-clamp exponent-cap", gspo(),
                           far([[32.0, -16.0, -15.5], [-32.0, 14.5, 17.0], [0.0, 2.0**-12], [0.0]], [-1.0, 0.5, 0.75, 0.25])),
    "large-mean": ("RATIO-6 SURR-2", "A mean log-ratio of 12 with A < 0: the loss is 160,000, and so is the gradient", "exponent-cap dual-clip-leak", gspo(),
                   far([[12.0, 11.0, 13.0], [21.0, 20.5], [2.0**-12], [0.0]], [-1.0, -0.5, 0.75, 0.25])),
}  # fmt: skip
for _slug, (_clauses, _title, _flags, _objective, _source) in _FAR.items():
    _add(_slug, _title, _clauses, _flags, partial(lambda o, s: loss(o, padded(s)), _objective, _source))
_add(
    "overflow-packed",
    "One segment overflows with a closed gate: a cumulative sum over the row spoils every segment after it",
    "NUM-3 PACK-2",
    "overflow-nan cumulative-sum",
    lambda: loss(gspo(), packed(_FAR["overflow-clipped"][4], trailing=9, fill=-1.0)),
)


_add(
    "impossible-first-packed",
    "A response that became impossible before three near ratio 1: a cumulative sum over the row has no digits left for them",
    "NUM-3 PACK-2",
    "cumulative-sum",
    lambda: loss(gspo(), packed(explicit([[-600.0] * 3, [5 * 2.0**-16] * 2, [2.0**-15, -5 * 2.0**-15], [-5 * 2.0**-16] * 3]).also(advantages=[1.0, -0.5, 0.75, -1.25]), trailing=2)),
)  # fmt: skip


def _fine() -> Responses:
    """Log-ratios of 2^-40: only float64 has them."""
    quantum = 2.0**-48
    return responses("numerics/fine", [5, 3, 8, 2], [2.0**-40, -(2.0**-42), 3e-4 - 2.0**-30, 2.0**-41], spread=2.0**-36, quantum=quantum).also(advantages=[1.0, -0.5, 0.75, -1.0])  # fmt: skip


for _name, _objective in {"gspo": gspo(), "gspo-token": gspo_token(), "grpo": grpo()}.items():
    _add(
        f"float64-{_name}",
        f"float64 inputs that differ by 1e-12: everything stays in float64 ({_name})",
        "NUM-2",
        "float64-narrowed",
        partial(lambda o: loss(o, padded(_fine()), ("loss", "gradient", "metrics.ratio_mean"), dtype=("float64",)), _objective),
    )  # fmt: skip


def _fine_rewards() -> Case:
    rewards = np.array([0.5, 0.5 + 2.0**-40, 0.5 - 2.0**-38, 1.0, 0.0, 0.25])
    inputs = {"rewards": rewards, "groups": np.array([0, 0, 0, 1, 1, 1])}
    settings = {"center": "mean", "scale": "none", "ddof": 1, "eps": 1e-6, "eps_placement": "std"}
    return call("group_advantages", inputs, "advantages", fields={"dtype": ("float64",)}, **settings)


_add(
    "float64-rewards",
    "float64 rewards that differ by 1e-12, centred",
    "NUM-2 ADV-7",
    "float64-narrowed one-pass-variance",
    _fine_rewards,
)

ERRORS = "The paper has no such input. Convention: an error that names the argument, where values can be read."


def _refused(objective_: dict[str, Any], argument: str, place: int, value: float) -> Case:
    source = responses("numerics/refused", [4, 2, 5], [2e-4, -1e-4, 1e-4], spread=0.05, extra=("ref_logp",))
    inputs = padded(source.also(advantages=[1.0, -0.5, 0.75]))
    if objective_["penalty"] is None:
        inputs.pop("ref_logp")
    array = inputs[argument].copy()
    array.flat[place] = value
    return loss(objective_, inputs | {argument: array}, ("loss",), refuses=argument)


_WITH_PENALTY = objective(penalty={"estimator": "k3", "coefficient": 0.125, "importance": None, "aggregation": None, "log_ratio_clamp": None, "value_clamp": None})  # fmt: skip
for _slug, (_argument, _value, _what) in {
    "nan-logp": ("logp", nan, "NaN"),
    "infinite-logp": ("logp", -inf, "-inf, a token that the policy could not have sampled,"),
    "nan-old-logp": ("old_logp", nan, "NaN"),
    "infinite-old-logp": ("old_logp", -inf, "-inf"),
    "nan-advantages": ("advantages", nan, "NaN"),
    "infinite-advantages": ("advantages", inf, "+inf"),
    "nan-ref-logp": ("ref_logp", nan, "NaN"),
}.items():
    _add(
        f"refuses-{_slug}",
        f"{_what} at a counted position of `{_argument}` is an error, not a NaN in the loss",
        "NUM-6",
        "bad-call-accepted",
        partial(_refused, _WITH_PENALTY if _argument == "ref_logp" else gspo(), _argument, 1, _value),
        level="SHOULD",
        note=ERRORS,
    )


def _given() -> Case:
    source = responses("numerics/given", [4, 2, 5], [2e-4, -1e-4, 1e-4], spread=0.05).also(advantages=[1.0, -0.5, 0.75])
    return loss(objective(mode=aggregation(count="given")), padded(source), ("loss",), refuses="normalizer")


_add(
    "refuses-missing-normalizer",
    "count given without a normaliser is an error, not a guess",
    "AGG-7",
    "bad-call-accepted",
    _given,
    level="SHOULD",
    note="How a step is divided is the caller's to say here. Convention: an error that names the normaliser.",
)
