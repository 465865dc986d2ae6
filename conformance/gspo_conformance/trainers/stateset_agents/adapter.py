"""`training.objectives`: `resolve_objective` as `GSPOTrainer` calls it, then `policy_loss`, `compute_advantages` and their parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from inspect import signature
from types import SimpleNamespace
from typing import Any

import torch

from ...target import DTYPES, INPUT_DTYPES, Case, Skip
from ...words import HarnessError
from ..adapter import Settings, TrainerTarget, offered, tensor, torch_loss
from ..stubs import without_init

without_init("stateset_agents", "stateset_agents.training")

RELEASE = version("stateset-agents")
if find_spec("stateset_agents.training.objectives") is None:
    raise HarnessError(
        f"StateSet Agents {RELEASE} has no training.objectives: 0.50.0 is the first release whose losses are there"
    )

from stateset_agents.training import objectives

from .dialect import ADVANTAGES, AGGREGATIONS, DEFAULTS, DIALECT, OVERRIDES, RATIOS

COUNTS = "total_rows" in signature(objectives.policy_loss).parameters
KINDS = {value: key for key, value in RATIOS.items()}


def policy_loss(settings: Settings, case: Case) -> Mapping[str, Any]:
    """`policy_loss` of per-token log-probabilities, float32 or wider, with the counts of the whole step where they are given."""
    case = replace(case, input_dtype=None)
    objective = _objective(tuple(sorted(settings.items(), key=str)))
    inputs = {"mask": tensor(case.inputs["mask"]), "advantages": tensor(case.inputs["advantages"])}
    inputs["logp_old"] = tensor(case.inputs["old_logp"])
    if "ref_logp" in case.inputs:
        inputs["logp_ref"] = tensor(case.inputs["ref_logp"])
    counts = _counts(objective, case)
    return torch_loss(
        case, lambda logp: objectives.policy_loss(logp_cur=logp, objective=objective, **inputs, **counts).loss
    )


@cache
def _objective(settings: tuple[tuple[str, Any], ...]) -> Any:
    """The objective that `GSPOTrainer` would evaluate for these settings, any ratio allowed."""
    every = DEFAULTS | dict(settings)
    overrides = {key.removeprefix(OVERRIDES): value for key, value in every.items() if key.startswith(OVERRIDES)}
    native = {"clip_low": every["clip_range_left"], "clip_high": every["clip_range_right"]}
    config = SimpleNamespace(objective=every["objective"], objective_overrides=overrides)
    return objectives.resolve_objective(config, "gspo", kl_coef=every["beta"], **native)


def _counts(objective: Any, case: Case) -> dict[str, float]:
    normalizer = case.parameters.get("normalizer")
    if normalizer is None:
        return {}
    if not COUNTS:
        raise Skip(f"StateSet Agents {RELEASE} takes no counts of the whole step")
    return {"total_tokens" if objective.aggregate == "token_mean" else "total_rows": float(normalizer)}


def group_advantages(case: Case) -> Mapping[str, Any]:
    """`compute_advantages`, always in float32."""
    asked = {"center": "mean", "scale": "std", "ddof": 1, "eps": 1e-6, "eps_placement": "std"} | dict(case.parameters)
    kinds = [kind for kind, form in ADVANTAGES.items() if all(asked[key] == value for key, value in form.items())]
    if not kinds or asked["eps_placement"] != "std":
        raise Skip("StateSet Agents has group_norm and batch_norm with ddof 0, group_mean and leave_one_out")
    return _advantages(case, kinds[0], asked["eps"])


def leave_one_out_advantages(case: Case) -> Mapping[str, Any]:
    """`compute_advantages` with `advantage="leave_one_out"`."""
    return _advantages(case, "leave_one_out", 1e-8)


def _advantages(case: Case, kind: str, eps: float) -> Mapping[str, Any]:
    if case.dtype != "float32":
        raise Skip("its advantages are float32, whatever the rewards")
    objective = objectives.OBJECTIVES["gspo"].with_(advantage=kind, advantage_eps=eps)
    found = objectives.compute_advantages(tensor(case.inputs["rewards"]), tensor(case.inputs["groups"]), objective)
    return {"advantages": found.numpy()}


def ratio(case: Case) -> Mapping[str, Any]:
    """`_compute_ratio`; 1 at uncounted tokens, which nothing reads."""
    kind = case.parameters["kind"]
    if kind not in KINDS:
        raise Skip(f"StateSet Agents has no {kind} ratio")
    logp, old = (tensor(case.inputs[name], case.input_dtype) for name in ("logp", "old_logp"))
    mask = tensor(case.inputs["mask"]).to(logp.dtype)
    objective = objectives.OBJECTIVES["gspo"].with_(ratio=KINDS[kind])
    found = objectives._compute_ratio(objective, logp, old, mask, None).to(getattr(torch, case.dtype))
    return {"ratio": (found[:, 0] if kind == "sequence" else torch.where(mask > 0, found, 1.0)).numpy()}


def clipped_surrogate(case: Case) -> Mapping[str, Any]:
    """`surrogate`, whose sign is that of a loss."""
    clip = case.parameters["clip"]
    objective = objectives.OBJECTIVES["gspo"].with_(clip_low=clip["low"], clip_high=clip["high"], delta=clip["dual"])
    found = objectives.surrogate(objective, tensor(case.inputs["ratio"]), tensor(case.inputs["advantages"]), None)
    return {"value": -found.numpy()}


def aggregate(case: Case) -> Mapping[str, Any]:
    """`aggregate`, with the counts of the whole step where they are given."""
    mode = case.parameters["mode"]
    kind = next((key for key, value in AGGREGATIONS.items() if value == mode["mode"]), None)
    if kind is None or mode["count"] == "non_empty" or mode["constant"] != int(mode["constant"]):
        raise Skip(f"StateSet Agents does not aggregate by {mode['mode']}, counting {mode['count']}")
    objective = objectives.OBJECTIVES["gspo"].with_(aggregate=kind, max_completion_length=int(mode["constant"]))
    values, mask = tensor(case.inputs["values"]), tensor(case.inputs["mask"])
    found = objectives.aggregate(objective, values, mask.to(values.dtype), **_counts(objective, case))
    return {"value": found.numpy()}


OPERATIONS = {
    "group_advantages": group_advantages,
    "leave_one_out_advantages": leave_one_out_advantages,
    "ratio": ratio,
    "clipped_surrogate": clipped_surrogate,
    "aggregate": aggregate,
}
CAPABILITIES = offered(
    ("step", "pipeline", *OPERATIONS),
    "logp old_logp advantages mask ref_logp groups rewards ratio values",
    "objective normalizer advantages center scale ddof eps eps_placement kind clip mode",
    dtypes=DTYPES,
    token_advantages=True,
    input_dtypes=INPUT_DTYPES,
)


def claims() -> TrainerTarget:
    """Every objective that the fields of `PolicyObjective` claim; log-probabilities are float32 unless `logprob_dtype` says otherwise."""
    versions = {"stateset-agents": RELEASE, "torch": torch.__version__}
    return TrainerTarget(versions, DIALECT, RELEASE, policy_loss, OPERATIONS, CAPABILITIES)


def default() -> TrainerTarget:
    """`GSPOConfig` with a clip range, all else as it comes; old log-probabilities are those of the first of its iterations."""
    return claims().as_documented(token_advantages=False)
