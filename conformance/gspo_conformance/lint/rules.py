"""The rules: each holds one axis of what a configuration optimises against the paper, with the consequence in numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..trainers.dialect import PAPER, SEVERITIES, Dialect, Finding, Reading, lone

# A token log-ratio that differs by this much is what mini-batches and engines produce; see the numerics page.
TOKEN_SPREAD, LENGTH = 0.05, 512
WIDE = 0.01
RANGE, FAR = PAPER["surrogate"], 3.0


def findings(reading: Reading) -> list[Finding]:
    """Everything that there is to say about a configuration, worst first, each with the setting that causes it."""
    found = [*reading.findings, *(one for rule in RULES for one in rule(reading))]
    found = [one if one.key else replace(one, key=_key(one.fix, reading)) for one in found]
    return sorted(found, key=lambda one: SEVERITIES.index(one.severity))


def _not_gspo(reading: Reading) -> Iterator[Finding]:
    ratio = reading.objective["ratio"]
    if ratio in ("sequence", "gspo_token"):
        return
    yield Finding(
        "ratio",
        "error",
        "",
        f"the importance ratio is per {'sequence, without the length in the exponent' if ratio == 'product' else 'token'}: this is not GSPO",
        "GSPO-RATIO-2",
        "every token is weighted and clipped by its own ratio; the noise of a response grows with its length",
        _fix(reading, "ratio"),
    )


def _surrogate(reading: Reading) -> Iterator[Finding]:
    kind = reading.objective["surrogate"]["kind"]
    if kind != "clip" and reading.objective["ratio"] in ("sequence", "gspo_token"):
        told = f"the surrogate is {kind}, not the clipped one of the paper"
        yield Finding("surrogate", "error", "", told, "GSPO-SURR-1", fix=_fix(reading, "surrogate"))


def _aggregation(reading: Reading) -> Iterator[Finding]:
    mode = reading.objective["aggregation"]["mode"]
    told = {
        "token_mean": "a response of 2,000 tokens weighs 10 times one of 200; against the paper, response i counts G|y_i|/Σ|y| times",
        "group_token_mean": "a response of 2,000 tokens weighs 10 times one of 200 of its group",
        "sequence_mean_token_sum": "every response is multiplied by its length: gradients are hundreds of times the paper's and long responses rule",
        "token_sum": "every response is multiplied by its length and nothing divides by their number",
    }
    if mode in told and reading.objective["ratio"] in ("sequence", "gspo_token"):
        constant = reading.objective["aggregation"]["constant"]
        cost = (
            told[mode]
            if constant == 1
            else f"a response counts |y|/{constant:g} of what it does in the paper: long ones rule"
        )
        message = f"the loss is aggregated by {mode.replace('_', ' ')}, the paper's by the mean over responses of the mean over tokens"
        yield Finding("aggregation", "error", "", message, "GSPO-AGG-1", cost, _fix(reading, "aggregation"))


def _clip_range(reading: Reading) -> Iterator[Finding]:
    surrogate = reading.objective["surrogate"]
    if surrogate["kind"] != "clip" or reading.objective["ratio"] not in ("sequence", "gspo_token"):
        return
    low, high = surrogate["low"], surrogate["high"]
    named = _dialect(reading).clip_keys
    keys = [key for key in named if key in reading.settings] or [
        key for key in reading.settings if "clip" in key.rpartition(".")[2] or "epsilon" in key.rpartition(".")[2]
    ]
    inherited = not any(key in reading.given for key in keys)
    if max(low, high) >= WIDE:
        spread = TOKEN_SPREAD / math.sqrt(LENGTH)
        away = math.log1p(high) / spread
        yield Finding(
            "inherited-clip-range" if inherited else "clip-range",
            "error",
            ", ".join(keys[:2]),
            f"the clip range is -{low:g} / +{high:g}{', a default made for token ratios' if inherited else ''}; the paper's is -0.0003 / +0.0004",
            "GSPO-SURR-3",
            f"it can never bind: at {LENGTH} tokens with token log-ratios of spread {TOKEN_SPREAD:g}, log s_i has spread {spread:.4f} and the bound is {away:.0f} of these away",
            _fix(reading, "clip"),
        )
    elif min(low, high) == 0:
        yield Finding(
            "clip-range", "error", ", ".join(keys[:2]), f"the clip range is -{low:g} / +{high:g}", "GSPO-SURR-3"
        )
    elif low > high:
        yield Finding(
            "clip-order",
            "warning",
            ", ".join(keys[:2]),
            f"the clip range is -{low:g} / +{high:g}: wider below than above, the paper's is the other way round",
            "GSPO-SURR-3",
            "the range stops good responses earlier than bad ones; the two may have been exchanged",
            _fix(reading, "clip"),
        )
    elif max(low / RANGE["low"], high / RANGE["high"], RANGE["low"] / low, RANGE["high"] / high) > FAR:
        message = f"the clip range is -{low:g} / +{high:g}, far from the paper's -0.0003 / +0.0004"
        yield Finding("clip-range", "note", ", ".join(keys[:2]), message, "GSPO-SURR-3")


def _dual(reading: Reading) -> Iterator[Finding]:
    surrogate = reading.objective["surrogate"]
    if surrogate.get("dual") is None or reading.objective["ratio"] not in ("sequence", "gspo_token"):
        return
    dual = surrogate["dual"]
    tight = dual < 1 + 10 * max(surrogate["high"], 1e-3)
    yield Finding(
        "dual-clip",
        "error" if tight or dual < 1.5 else "warning",
        "",
        f"a dual clip at {dual:g}: responses with a negative advantage and s above {dual:g} lose their gradient",
        "GSPO-SURR-5",
        "the paper keeps exactly these, the worst that the policy has moved towards",
        _fix(reading, "dual"),
    )


def _penalty(reading: Reading) -> Iterator[Finding]:
    penalty = reading.objective["penalty"]
    if penalty and penalty["coefficient"]:
        message = f"a KL term ({penalty['estimator']}, coefficient {penalty['coefficient']:g}) where the paper has none"
        yield Finding("penalty", "warning", "", message, "GSPO-KL-7", "", _fix(reading, "penalty"))


def _correction(reading: Reading) -> Iterator[Finding]:
    for one in reading.objective["correction"]:
        message = f"the loss is multiplied by a correction for the sampler, per {one['level']}{_band(one)}"
        yield Finding("correction", "note", "", message, "GSPO-CORR-5")
        if one["level"] == "sequence":
            yield Finding(
                "correction-level",
                "warning",
                "",
                "the correction weight is a product over the response, not its geometric mean",
                "GSPO-CORR-7",
                f"at {LENGTH} tokens a mismatch of 0.0015 a token gives weights of {math.exp(-0.0015 * LENGTH):.2f}, at 4,096 of {math.exp(-0.0015 * 4096):.4f}",
            )


def _band(correction: Mapping[str, Any]) -> str:
    """`, held below 2`, `, dropped outside 0.5 to 5`; that there is none without bounds."""
    low, high = correction["low"], correction["high"]
    verb = {"clamp": "held", "mask": "dropped", "reject": "whole responses dropped"}[correction["action"]]
    clamps = correction["action"] == "clamp"
    if low is None and high is None:
        return ", without bounds"
    if low is not None and high is not None:
        return f", {verb} {'within' if clamps else 'outside'} {low:g} to {high:g}"
    above = (high is not None) != clamps
    return f", {verb} {'above' if above else 'below'} {low if high is None else high:g}"


def _cap(reading: Reading) -> Iterator[Finding]:
    cap = reading.objective["log_ratio_cap"]
    if cap is not None:
        message = f"the log-ratio is capped at {cap:g}: above it the gradient is 0, whatever the sign of the advantage"
        yield Finding(
            "log-ratio-cap",
            "note",
            "",
            message,
            "GSPO-RATIO-6",
            f"reached only where the ratio exceeds {math.exp(cap):.2g}",
        )


def _advantages(reading: Reading) -> Iterator[Finding]:
    advantages = reading.advantages
    if advantages is None:
        if reading.estimator not in ("unknown", "group"):
            message = f"the advantages come from {reading.estimator}, not from the rewards of a group of responses"
            yield Finding("advantages", "error", "", message, "GSPO-ADV-1", "", _fix(reading, "advantages"))
        return
    if advantages.get("center") == "none":
        told = "a response with a positive reward is always reinforced, however much better the others of its group are"
        yield Finding(
            "group-baseline",
            "error",
            "",
            "no group baseline is subtracted",
            "GSPO-ADV-1",
            told,
            _fix(reading, "advantages"),
        )
    elif advantages.get("center", "mean") != "mean":
        told = {"leave_one_out": "the mean of the other responses, not that of the whole group"}
        name = advantages["center"]
        yield Finding("baseline", "warning", "", f"the baseline is {told.get(name, name)}", "GSPO-ADV-6")
    yield from _scale(reading, advantages)


def _group_of_one(reading: Reading) -> Iterator[Finding]:
    key, cost = _dialect(reading).group
    grouped = reading.advantages is not None and reading.advantages.get("center", "mean") != "none"
    if grouped and reading.settings.get(key) == 1:
        yield lone(key, cost, f"{key}=8")


def _scale(reading: Reading, advantages: Mapping[str, Any]) -> Iterator[Finding]:
    scale, ddof, eps = advantages.get("scale", "std"), advantages.get("ddof", 1), advantages.get("eps", 1e-6)
    if scale != "std":
        names = {
            "none": "not divided by the standard deviation of the group",
            "batch_std": "divided by the standard deviation of the batch, not that of the group",
            "leave_one_out_std": "divided by the standard deviation of the other responses",
        }
        told = names.get(scale, f"divided by {scale}")
        yield Finding("scale", "warning", "", f"advantages are {told}", "GSPO-ADV-7", "", _fix(reading, "scale"))
        return
    if ddof == 0:
        message = "the standard deviation has ddof 0; this specification's default is 1"
        yield Finding(
            "ddof", "note", "", message, "GSPO-ADV-2", "advantages are larger by √(G/(G-1)): 1.41 at G=2, 1.07 at G=8"
        )
    if eps < 1e-7:
        told = "a group of 8 equal rewards of 0.1 in float32 gets |A| up to 0.8 instead of 0 unless equal groups are treated apart"
        yield Finding("eps", "warning", "", f"eps = {eps:g} is below the rounding of float32", "GSPO-ADV-3", told)
    elif eps > 1e-3:
        yield Finding(
            "eps", "note", "", f"eps = {eps:g} shrinks advantages of groups with a small spread", "GSPO-ADV-2"
        )


def _whiten(reading: Reading) -> Iterator[Finding]:
    if reading.whiten:
        told = "responses no longer have zero mean in their group, and long ones weigh more in the statistics"
        message = "advantages are normalised once more, over all tokens of the batch"
        yield Finding("whitening", "warning", "", message, "GSPO-ADV-10", told, _fix(reading, "whiten"))


def _dtype(reading: Reading) -> Iterator[Finding]:
    if reading.dtype in ("bfloat16", "float16", "bf16", "fp16"):
        told = "1.0003 and 0.9997 are both 1.0 in this dtype: the clip range does not exist in it"
        yield Finding(
            "dtype", "error", "", f"the loss is computed in {reading.dtype}", "GSPO-NUM-1", told, _fix(reading, "dtype")
        )


def _updates(reading: Reading) -> Iterator[Finding]:
    if reading.updates_per_rollout == 1:
        yield Finding(
            "one-update",
            "error",
            "",
            "one optimiser step per rollout: the ratio is always 1, nothing is ever clipped, GSPO has no effect",
            "GSPO-RATIO-8",
            "the loss is -mean A, its gradient that of REINFORCE with a baseline",
            _fix(reading, "updates"),
        )


def _fix(reading: Reading, axis: str) -> str:
    return _dialect(reading).fixes.get(axis, "")


def _dialect(reading: Reading) -> Dialect | type[Dialect]:
    """That of its trainer, or one that says nothing of its own."""
    from ..trainers.room import rooms

    return rooms()[reading.trainer].dialect if reading.trainer in rooms() else Dialect


def _key(fix: str, reading: Reading) -> str:
    """The first setting that a fix names, as a key or as a flag: `no --use-kl-loss` is about `use_kl_loss`."""
    words = (word.removeprefix("--") for word in re.findall(r"[\w.-]+", fix))
    names = (name for word in words for name in (word, word.replace("-", "_")))
    return next((name for name in names if name in reading.settings), "")


RULES: tuple[Callable[[Reading], Iterator[Finding]], ...] = (
    _not_gspo,
    _surrogate,
    _aggregation,
    _clip_range,
    _dual,
    _dtype,
    _updates,
    _advantages,
    _group_of_one,
    _whiten,
    _penalty,
    _correction,
    _cap,
)
