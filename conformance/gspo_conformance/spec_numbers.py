"""The numbers of the specification's numerics page, recomputed: `python -m gspo_conformance.spec_numbers [--check]`.

The page holds marked spans, `<!-- numbers:NAME -->...<!-- /numbers -->`. Without an option their
content is rewritten; with `--check` it is compared and the exit code is 1 where it differs. Everything
is deterministic: exact fractions, closed forms, and simulations with NumPy's frozen `RandomState` stream.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

LOW, HIGH = 3e-4, 4e-4
LENGTHS = (64, 512, 4096, 32768)
_SPAN = re.compile(r"(<!-- numbers:([\w-]+) -->)(.*?)(<!-- /numbers -->)", re.DOTALL)
_HERE = Path(__file__).resolve().parent
# In a wheel the specification lies inside the package, in a checkout beside it.
_PAGE = next(iter((_HERE / "spec").glob("numerics.md")), _HERE.parents[1] / "docs" / "spec" / "numerics.md")

# dtype: bits of the significand, the leading one included
PRECISIONS = {"float32": 24, "float16": 11, "bfloat16": 8}


def round_to(values: Any, dtype: str) -> Any:
    """Nearest value of `dtype`, ties to even, as float64; bfloat16 by its bits."""
    if dtype != "bfloat16":
        return np.asarray(values, dtype=dtype).astype(np.float64)
    bits = np.asarray(values, dtype=np.float32).view(np.uint32)
    bits = bits + 0x7FFF + ((bits >> 16) & 1)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)


def clip_band() -> str:
    """Spacing around 1, the rounded bounds, and how many values lie in [1-LOW, 1) and (1, 1+HIGH]."""
    rows: list[list[str]] = []
    for name, digits in PRECISIONS.items():
        below, above = Fraction(1, 2**digits), Fraction(1, 2 ** (digits - 1))
        inside = Fraction("3e-4") // below, Fraction("4e-4") // above
        bounds = (f"{bound:.7g}" for bound in round_to([1 - LOW, 1 + HIGH], name))
        rows.append([name, f"{float(below):.2e}", f"{float(above):.2e}", *bounds, *map(str, inside)])
    head = r"dtype | spacing below 1 | above 1 | $1-3\cdot10^{-4}$ | $1+4\cdot10^{-4}$ | values below 1 | above 1"
    return _table(head, rows)


def bf16_exp() -> str:
    """e^-0.0015, rounded to bfloat16."""
    return f"{float(round_to(np.exp(-0.0015), 'bfloat16')):g}"


def _tokens(stream: np.random.RandomState, length: int) -> tuple[Any, Any]:
    """64 sequences: log-probabilities of mean -0.25 with a long tail, and the same moved by N(0, 0.01²)."""
    count = 64 if length <= 4096 else 16
    old = -stream.gamma(0.25, 1.0, size=(count, length))
    return old + 0.01 * stream.standard_normal((count, length)), old


def _difference_of_sums(new: Any, old: Any) -> Any:
    new, old = (np.add.accumulate(np.asarray(v, np.float32), axis=1, dtype=np.float32)[:, -1] for v in (new, old))
    return (new - old).astype(np.float64)


def _sum_of_differences(new: Any, old: Any) -> Any:
    d = np.asarray(new, np.float32) - np.asarray(old, np.float32)
    return np.add.accumulate(d, axis=1, dtype=np.float32)[:, -1].astype(np.float64)


def _mean_errors(length: int) -> dict[str, float]:
    """Largest error of the mean log-ratio per scheme, in units of LOW."""
    new, old = _tokens(np.random.RandomState(length), length)
    truth = np.mean(new - old, axis=1)
    errors = {f"stored in {name}, mean in float64": round_to(new, name) - round_to(old, name) for name in PRECISIONS}
    means = {name: np.mean(d, axis=1) for name, d in errors.items()}
    # what the float32 schemes are given is float32; their error is against the mean of exactly that
    new, old = new.astype(np.float32), old.astype(np.float32)
    exact = np.mean(new.astype(np.float64) - old.astype(np.float64), axis=1)
    means["float32, sum of differences, left to right"] = truth + _sum_of_differences(new, old) / length - exact
    means["float32, difference of two sums, left to right"] = truth + _difference_of_sums(new, old) / length - exact
    return {name: float(np.max(np.abs(mean - truth))) / LOW for name, mean in means.items()}


def mean_error() -> str:
    """Error of the mean log-ratio per scheme and length."""
    columns = [_mean_errors(length) for length in LENGTHS]
    rows = [[name, *(_significant(column[name]) for column in columns)] for name in columns[0]]
    return _table(" | ".join(["scheme", *(f"{length} tokens" for length in LENGTHS)]), rows)


def _significant(error: float) -> str:
    return f"{error:.1e}" if error < 1e-2 else f"{error:.2g}"


def accumulators(terms: int = 32768, value: float = -1.5e-3) -> str:
    """The mean of equal terms after adding them one by one in each dtype."""
    rows: list[list[str]] = []
    for name in ("float32", "float16", "bfloat16"):
        term = total = float(round_to(value, name))
        for _ in range(terms - 1):
            following = float(round_to(total + term, name))
            if following == total:
                break
            total = following
        rows.append([name, f"{total / terms:.4e}"])
    return _table("accumulator | mean", rows)


def predicted(length: int, bias: float, sigma: float) -> tuple[float, float]:
    """P(clip | A > 0) and P(clip | A < 0) for Gaussian, independent tokens."""
    width = sigma / math.sqrt(length)
    return _normal_cdf((bias - math.log1p(HIGH)) / width), _normal_cdf((math.log1p(-LOW) - bias) / width)


def _normal_cdf(z: float) -> float:
    return math.erfc(-z / math.sqrt(2)) / 2


def simulated(length: int, bias: float, sigma: float, seed: int) -> tuple[float, float]:
    """The share of responses, half of each sign, whose gate is 0; and its standard error."""
    count = max(256, min(4096, 2**22 // length))
    stream, signs = np.random.RandomState(seed), np.resize([1.0, -1.0], count)
    means = np.concatenate([np.mean(stream.standard_normal((64, length)), axis=1) for _ in range(count // 64)])
    ratio = np.exp(bias + sigma * means)
    share = float(np.mean(((signs > 0) & (ratio > 1 + HIGH)) | ((signs < 0) & (ratio < 1 - LOW))))
    return share, (share * (1 - share) / count) ** 0.5


def mismatch() -> str:
    """Clip fraction without any change of the policy, predicted and simulated."""
    rows: list[list[str]] = []
    for bias, sigma in ((0.0, 0.055), (-0.0015, 0.05)):
        for length in (256, 1024, 4096, 16384, 32768):
            above, below = predicted(length, bias, sigma)
            share, error = simulated(length, bias, sigma, seed=length)
            cells = (f"{above:.2f}", f"{below:.2f}", f"{(above + below) / 2:.2f}", f"{share:.2f} ± {error:.2f}")
            rows.append([f"{sigma:g}", f"{bias:g}", str(length), *cells])
    head = (
        r"$\sigma$ | $b$ | $\lvert y_i\rvert$ | $P(\cdot\mid\hat A>0)$ | $P(\cdot\mid\hat A<0)$ | predicted | simulated"
    )
    return _table(head, rows)


def noise_length() -> str:
    """The length at which sd(log s) is LOW for sd(d) = 0.055."""
    return str(math.ceil((Fraction("0.055") / Fraction("3e-4")) ** 2))


def noise_model() -> str:
    """The noise model against simulation: spread, clip fraction in the paper's range, and far out."""
    from .noise.simulation import comparisons

    rows = [
        [
            one.shape,
            str(one.length),
            f"{one.spread:.2f}",
            f"{one.predicted:.3f}",
            f"{one.simulated:.3f} ± {2 * one.error:.3f}",
            f"{one.tail:.3f} ± {2 * one.tail_error:.3f}",
        ]
        for one in comparisons()
    ]
    head = r"noise | $\lvert y_i\rvert$ | spread | predicted | simulated | where 0.01 is predicted"
    return _table(head, rows)


def noise_neglected() -> str:
    """What the model predicts for correlated noise at 2048 tokens when it takes it for independent."""
    from .noise.model import clip_fraction
    from .noise.simulation import BASE, PAPER

    return f"{clip_fraction(BASE, PAPER, 2048):.2f}"


NUMBERS: dict[str, Callable[[], str]] = {
    "clip-band": clip_band,
    "bf16-exp": bf16_exp,
    "mean-error": mean_error,
    "accumulators": accumulators,
    "mismatch": mismatch,
    "noise-length": noise_length,
    "noise-model": noise_model,
    "noise-neglected": noise_neglected,
}


def _table(head: str, rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in ([head], ["---"] * len(rows[0]), *rows)]
    return "\n\n" + "\n".join(lines) + "\n\n"


def rewrite(text: str) -> str:
    """`text` with the content of every marked span recomputed; an unknown or missing name is an error."""
    found = {match[1] for match in (m.groups() for m in _SPAN.finditer(text))}
    if found != set(NUMBERS):
        raise ValueError(f"marked spans: expected {sorted(NUMBERS)}, got {sorted(found)}")
    return _SPAN.sub(lambda match: match[1] + NUMBERS[match[2]]() + match[4], text)


def main(arguments: list[str] | None = None) -> int:
    """Rewrites the page, or compares it (`--check`); 1 where it differs."""
    parser = argparse.ArgumentParser(prog="python -m gspo_conformance.spec_numbers", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of rewriting")
    parser.add_argument("--page", type=Path, default=_PAGE, help="the numerics page")
    options = parser.parse_args(arguments)
    before = options.page.read_text(encoding="utf-8")
    after = rewrite(before)
    if not options.check:
        options.page.write_text(after, encoding="utf-8")
        return 0
    stale = [new[1] for old, new in zip(_SPAN.findall(before), _SPAN.findall(after), strict=True) if old != new]
    for name in stale:
        print(f"{options.page.name}: the numbers of {name!r} are stale; run without --check", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
