"""The core on a rearranged batch: packed, padded, wider, permuted, one response at a time, in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

import gspo_core
from gspo_conformance.mutants import Reference
from gspo_conformance.target import Capabilities, Case, FunctionTarget
from gspo_conformance.targets.numpy import target as numpy_target

CORE = numpy_target()
TOKENS = ("logp", "old_logp", "ref_logp", "behavior_logp")
LOSS = frozenset({"policy_loss"})
PER_RESPONSE_MODES = ("sequence_mean_token_mean", "sequence_mean_token_sum", "token_sum", "token_mean")


def _variant(name: str, run: Callable[[Case], Mapping[str, Any]], **capabilities: Any) -> FunctionTarget:
    return FunctionTarget(name, run, Capabilities.everything(**capabilities))


def _moved(case: Case, **inputs: Any) -> Mapping[str, Any]:
    return CORE.run(replace(case, inputs=inputs))


def in_float64(case: Case) -> dict[str, Any]:
    """Everything in float64, the result cast back."""

    def wide(inputs: Any) -> Any:
        if isinstance(inputs, list):
            return [{name: wide(value) for name, value in part.items()} for part in inputs]
        return inputs.astype(np.float64) if inputs.dtype.kind == "f" else inputs

    answer = _moved(case, **{name: wide(value) for name, value in case.inputs.items()})
    with np.errstate(over="ignore"):
        return {name: value if value.dtype == bool else value.astype(case.dtype) for name, value in answer.items()}


def as_packed(case: Case) -> Mapping[str, Any]:
    """Padded rows cut down to their counted tokens and laid end to end."""
    mask = case.inputs["mask"]
    rest = {name: value for name, value in case.inputs.items() if name != "mask"}
    laid = {name: value[mask] if value.shape == mask.shape else value for name, value in rest.items()}
    answer = dict(_moved(case, **laid, offsets=np.append(0, np.cumsum(mask.sum(axis=1)))))
    if "gradient" in answer:
        gradient = np.zeros(mask.shape, answer["gradient"].dtype)
        gradient[mask] = answer["gradient"]
        answer["gradient"] = gradient
    return answer


def as_padded(case: Case) -> Mapping[str, Any]:
    """Packed segments laid on rows of their own, garbage behind them."""
    offsets, size = case.inputs["offsets"], case.inputs["logp"].shape[0]
    gspo_core.Packed(offsets).bind((size,))
    lengths = np.diff(offsets)
    places = np.arange(max(int(lengths.max(initial=1)), 1))[None, :]
    inside = places < lengths[:, None]
    at = np.where(inside, offsets[:-1, None] + places, 0)
    counted = inside & case.inputs["mask"][at] if "mask" in case.inputs else inside
    laid = {name: value for name, value in case.inputs.items() if name not in ("mask", "offsets")}
    for name in laid:
        if name in TOKENS or (name == "advantages" and laid[name].shape == (size,) and size != len(lengths)):
            laid[name] = np.where(inside, laid[name][at], laid[name].dtype.type(np.nan))
    answer = dict(_moved(case, **laid, mask=counted))
    if "gradient" in answer:
        gradient = np.zeros(size, answer["gradient"].dtype)
        gradient[at[inside]] = answer["gradient"][inside]
        answer["gradient"] = gradient
    return answer


def wider(case: Case) -> Mapping[str, Any]:
    """Three columns of NaN on either side."""
    mask = case.inputs["mask"]

    def around(name: str, value: Any) -> Any:
        if value.shape != mask.shape or (name == "advantages" and value.shape == (mask.shape[0],)):
            return value
        fill: Any = False if name == "mask" else np.nan
        return np.pad(value, ((0, 0), (3, 3)), constant_values=fill)

    answer = dict(_moved(case, **{name: around(name, value) for name, value in case.inputs.items()}))
    if "gradient" in answer:
        answer["gradient"] = answer["gradient"][:, 3:-3]
    return answer


def permuted(case: Case) -> Mapping[str, Any]:
    """The responses in another order; every per-response array and the gradient follow."""
    count = case.inputs["mask"].shape[0]
    order = np.random.default_rng(count).permutation(count)
    answer = dict(_moved(case, **{name: value[order] for name, value in case.inputs.items()}))
    if "gradient" in answer:
        answer["gradient"] = answer["gradient"][np.argsort(order)]
    return answer


def one_at_a_time(case: Case) -> Mapping[str, Any]:
    """Micro-batches of one response under the normaliser of the whole: losses add, gradients are laid below each other."""
    whole = Reference(case)
    whole.read(dict(case.inputs), case.parameters)
    aggregation = whole.objective["aggregation"]
    count = case.parameters.get("normalizer") or whole.count(aggregation)
    parameters = {**case.parameters, "normalizer": float(count) or 1.0}
    wanted = tuple(name for name in case.outputs if not name.startswith("metrics."))
    rows = [
        {name: value[i : i + 1] for name, value in case.inputs.items()} for i in range(case.inputs["mask"].shape[0])
    ]
    parts = [CORE.run(replace(case, inputs=row, parameters=parameters, outputs=wanted)) for row in rows]
    loss = sum((part["loss"] for part in parts), np.zeros((), case.dtype))
    return {"loss": loss, "gradient": np.concatenate([part["gradient"] for part in parts])}


def staged(case: Case) -> Mapping[str, Any]:
    """The mutants' reference, unmutated: stages and a tape."""
    return Reference(case).answer()


VARIANTS = (
    _variant("staged", staged),
    _variant("float64", in_float64),
    _variant("packed", as_packed, operations=LOSS, layouts={"padded"}),
    _variant("padded", as_padded, operations=LOSS, layouts={"packed"}),
    _variant("wider", wider, operations=LOSS, layouts={"padded"}),
    _variant("permuted", permuted, operations=LOSS, layouts={"padded"}),
    _variant(
        "micro-batched",
        one_at_a_time,
        operations=LOSS,
        layouts={"padded"},
        metrics=(),
        objectives=[{"aggregation": {"mode": mode}, "penalty": None} for mode in PER_RESPONSE_MODES],
    ),
)
