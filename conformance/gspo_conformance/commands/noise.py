"""How much is clipped by noise alone: two scoring passes that disagree, and no change of the policy.

    gspo noise --std 0.05 --bias -0.0015 --length 512,4096,32768
    gspo noise --std 0.055 --length 4096 --clip 3e-4,4e-4 --dtype bf16
    gspo noise --std 0.05 --bias sampled --lengths lengths.txt --format json
    gspo noise runs/trace                          # estimated from a recorded run

--std and --bias are those of the log-ratio of a token, logp - old_logp, where it should be 0: in the
first mini-batch after a rollout, or between the rollout engine and the trainer. `--bias sampled` is
-std²/2, what sampling from the old policy implies. The model and its errors: docs/spec/numerics.md.
Exit code for a trace: 1 where a finding is an error, else 0.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gspo_core import Clip

from ..files import read_text
from ..noise.forecast import Forecast
from ..noise.model import Mismatch, lengths_of
from ..noise.precision import DTYPES
from ..noise.report import FORMATS, render
from ..words import UsageError, choices

if TYPE_CHECKING:
    from ..audit.trace import Trace
    from ..noise.responses import Gate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gspo noise`."""
    parser.add_argument("trace", nargs="?", type=Path, metavar="TRACE", help="a recorded run: estimate from it instead")
    parser.add_argument("--std", type=float, metavar="σ", help="spread of a token's log-ratio")
    parser.add_argument("--bias", metavar="b", help="its mean, or `sampled` for -std²/2")
    parser.add_argument("--correlation", type=float, metavar="φ", help="between neighbouring tokens")
    parser.add_argument("--between", type=float, metavar="ω", help="spread between responses")
    parser.add_argument("--dtype", help="what the log-probabilities are stored in, such as bf16")
    parser.add_argument("--length", metavar="T,...", help="counted tokens of a response; 512,4096,32768 by default")
    parser.add_argument("--lengths", type=Path, metavar="FILE", help="lengths of a run: numbers, or a JSON list")
    parser.add_argument("--clip", metavar="LOW,HIGH", help="the clip range; the run's, or 3e-4,4e-4")
    parser.add_argument("--positive", type=float, metavar="P", help="share of responses with A > 0; 0.5")
    parser.add_argument("--target", type=float, metavar="P", help="clip share that a range is sought for")
    parser.add_argument("--format", choices=FORMATS, default="text", help="how to report")
    parser.set_defaults(**_FORECAST)


def run(arguments: argparse.Namespace) -> int:
    """Prints the forecast, or what the trace says."""
    if arguments.trace is not None:
        return _run(arguments)
    print(render(_forecast(arguments), arguments.format), end="")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from ..audit.trace import read_trace
    from ..noise.analysis import analyse
    from ..noise.findings import findings_of
    from ..noise.report import render_run
    from ..noise.responses import Gate

    for name, default in _FORECAST.items():
        if getattr(arguments, name) != default:
            told = "of a forecast alone" if name == "target" else "estimated from the trace"
            raise UsageError(f"--{name}: {told}; leave one of the two out")
    trace = read_trace(arguments.trace)
    run = analyse(trace, Gate("sequence", _clip(arguments.clip)) if arguments.clip else _claimed(trace))
    found = findings_of(run)
    print(render_run(trace, run, found, arguments.format), end="")
    return int(any(one.severity == "error" for one in found))


def _claimed(trace: Trace) -> Gate | None:
    """The gate of the objective that the trace, or its trainer's settings, claim; None where neither says."""
    from ..audit.claim import claim_of
    from ..noise.responses import gate_of

    try:
        return gate_of(claim_of(trace).objective.to_dict())
    except UsageError:
        return None


_MOST = 64_000_000
_SMALL, _LARGE = 1e-12, 100.0
# What a forecast is made of, and a trace says for itself.
_FORECAST = {
    "std": 0.0,
    "bias": "0",
    "correlation": 0.0,
    "between": 0.0,
    "dtype": "float32",
    "length": None,
    "lengths": None,
    "positive": 0.5,
    "target": 0.01,
}


def _forecast(arguments: argparse.Namespace) -> Forecast:
    dtype = arguments.dtype.lower()
    if dtype not in DTYPES:
        raise UsageError(f"--dtype: {choices(dtype, DTYPES)}")
    if not (arguments.std or arguments.between or arguments.bias != "0" or DTYPES[dtype] != "float32"):
        raise UsageError("nothing to forecast: give --std, for example --std 0.05, or --bias, or --dtype bf16")
    for name in ("positive", "target"):
        if not 0 < getattr(arguments, name) < (1 if name == "positive" else 0.5):
            raise UsageError(f"--{name}: expected a share, got {getattr(arguments, name)}")
    try:
        noise = Mismatch(arguments.std, 0.0, arguments.correlation, arguments.between)
        bias, *more = [noise.implied_bias] if arguments.bias == "sampled" else _numbers("--bias", arguments.bias)
        if more:
            raise ValueError(f"bias: expected one number, or `sampled`, got {arguments.bias!r}")
        for name, value in (("std", noise.std), ("between", noise.between), ("bias", bias)):
            if value and not _SMALL <= abs(value) <= _LARGE:
                raise ValueError(f"{name}: expected 0, or a size from {_SMALL:g} to {_LARGE:g}, got {value:g}")
        clip = _clip(arguments.clip or "3e-4,4e-4")
        lengths = lengths_of(_lengths(arguments))
        return Forecast(
            replace(noise, bias=bias),
            clip,
            lengths,
            DTYPES[dtype],
            arguments.positive,
            arguments.target,
            distribution=arguments.lengths is not None,
        )
    except ValueError as error:
        raise UsageError(f"--{error}") from None


def _clip(text: str) -> Clip:
    bounds = _numbers("--clip", text)
    if len(bounds) > 2:
        raise UsageError(f"--clip: expected LOW,HIGH such as 3e-4,4e-4, got {text!r}")
    try:
        return Clip(bounds[0], bounds[-1])
    except ValueError as error:
        raise UsageError(f"--clip: {error}") from None


def _lengths(arguments: argparse.Namespace) -> Any:
    if arguments.lengths is None:
        return _numbers("--length", arguments.length or "512,4096,32768")
    if arguments.length:
        raise UsageError("--length or --lengths: expected one of the two, got both")
    return _numbers(f"--lengths {arguments.lengths}", read_text(arguments.lengths, "lengths", _MOST))


def _numbers(option: str, text: str) -> list[float]:
    """Numbers between commas, spaces or line breaks, with or without the brackets of a JSON list."""
    words = text.strip().strip("[]").replace(",", " ").split()
    try:
        found = [float(word) for word in words]
    except ValueError:
        found = []
    if not found:
        raise UsageError(f"{option}: expected numbers, got {text.strip()[:40]!r}")
    return found
