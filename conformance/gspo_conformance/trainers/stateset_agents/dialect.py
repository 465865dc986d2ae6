"""StateSet Agents' `GSPOConfig`: `objective` names a preset, `objective_overrides` changes its fields, `clip_range_*` those of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .. import parts
from ..dialect import PAPER, Dialect, Inexpressible, Reading, bound_inside
from .findings import findings

OVERRIDES = "objective_overrides."
DEFAULTS: dict[str, Any] = {
    "objective": None,
    "use_gspo_token": False,
    "clip_range_left": 3e-4,
    "clip_range_right": 4e-4,
    "beta": 0.0,
    "max_completion_length": 256,
    "num_generations": 4,
    "num_iterations": 1,
    "mini_batch_size": 1,
    "rescore_old_log_probs": True,
    "logprob_dtype": None,
}
FIELDS: dict[str, Any] = {
    "advantage": "group_norm",
    "advantage_eps": 1e-8,
    "ratio": "token",
    "ratio_clamp": 20.0,
    "clip": "clipped",
    "clip_low": 0.2,
    "clip_high": 0.2,
    "delta": None,
    "is_cap": 5.0,
    "aggregate": "seq_mean",
    "max_completion_length": None,
    "kl": "none",
    "kl_coef": 0.0,
    "kl_bias_correction": False,
    "entropy_coef": 0.0,
}
_GSPO = {"clip_low": 3e-4, "clip_high": 4e-4, "kl": "k3_sequence"}
PRESETS: dict[str, dict[str, Any]] = {
    "grpo": {"kl": "k3_token"},
    "dr_grpo": {"advantage": "group_mean", "aggregate": "seq_sum_const"},
    "bnpo": {"aggregate": "token_mean"},
    "dapo": {"clip_high": 0.28, "aggregate": "token_mean"},
    "gspo": {"ratio": "sequence", **_GSPO},
    "gspo_token": {"ratio": "sequence_token", **_GSPO},
    "rloo": {"advantage": "leave_one_out"},
    "reinforce_pp_baseline": {"advantage": "batch_norm", "aggregate": "token_mean"},
    "cispo": {"clip": "cispo", "aggregate": "token_mean"},
}
RATIOS = {"token": "token", "sequence": "sequence", "sequence_token": "gspo_token"}
NATIVE = {"sequence": "gspo", "sequence_token": "gspo_token", "token": "grpo"}
AGGREGATIONS = {
    "seq_mean": "sequence_mean_token_mean",
    "token_mean": "token_mean",
    "seq_sum_const": "sequence_mean_token_sum",
}
DTYPES = {None: "float32", "fp32": "float32", "half": "float16"}
ADVANTAGES: dict[str, dict[str, Any]] = {
    "group_norm": {"center": "mean", "scale": "std", "ddof": 0},
    "group_mean": {"center": "mean", "scale": "none"},
    "leave_one_out": {"center": "leave_one_out", "scale": "none"},
    "batch_norm": {"center": "mean", "scale": "batch_std", "ddof": 0},
}


class StateSetAgents(Dialect):
    """As `GSPOConfig` comes its objective is the paper's; what it lacks is a second update of a rollout."""

    name = "stateset_agents"
    versions = ("0.69.0",)
    clip_keys = ("clip_range_left", "clip_range_right")
    fixes: ClassVar[dict[str, str]] = {
        "ratio": "no objective: the trainer's own is gspo",
        "aggregation": "no objective: the trainer's own aggregates by seq_mean",
        "clip": "clip_range_left=3e-4, clip_range_right=4e-4",
        "dual": "objective_overrides without delta",
        "penalty": "beta=0.0",
        "advantages": "objective_overrides without advantage",
        "scale": "objective_overrides without advantage",
        "updates": "num_iterations=4",
        "dtype": "logprob_dtype=None",
    }

    def read(self, settings: Mapping[str, Any], version: str) -> Reading:
        """What a `GSPOConfig` optimises."""
        flat = _flat(settings)
        given = {key: value for key, value in flat.items() if key in DEFAULTS or key.startswith(OVERRIDES)}
        every = DEFAULTS | given
        fields = _fields(every)
        if fields["ratio"] not in RATIOS:
            raise Inexpressible(f"the ratio {fields['ratio']!r} of StateSet Agents is not of this family")
        objective = {
            **PAPER,
            "ratio": RATIOS[fields["ratio"]],
            "surrogate": _surrogate(fields),
            "aggregation": _aggregation(fields),
            "penalty": _penalty(fields),
            "log_ratio_cap": fields["ratio_clamp"],
        }
        advantages = ADVANTAGES.get(fields["advantage"])
        bounds = (OVERRIDES + "is_cap", fields["is_cap"]), (OVERRIDES + "delta", fields["delta"])
        return Reading(
            trainer=self.name,
            version=version,
            objective=objective,
            advantages=None if advantages is None else advantages | {"eps": fields["advantage_eps"]},
            estimator=str(fields["advantage"]),
            dtype=DTYPES.get(every["logprob_dtype"], str(every["logprob_dtype"])),
            updates_per_rollout=int(every["num_iterations"]),
            settings=every,
            given=frozenset(given),
            findings=(
                *findings(every, fields, given),
                *bound_inside(objective["surrogate"]["kind"], *bounds, fields["clip_high"]),
            ),
        )

    def write(self, objective: Mapping[str, Any], version: str) -> dict[str, Any]:
        """The settings for an objective: a preset by its ratio, and overrides where it differs."""
        ratio = next((key for key, value in RATIOS.items() if value == objective["ratio"]), None)
        if ratio is None or objective["correction"] or objective["log_ratio_cap"] not in (None, 20.0):
            raise Inexpressible(
                "StateSet Agents has no such ratio, no correction weights, and clamps log-ratios both ways"
            )
        wanted = FIELDS | {"ratio": ratio}
        wanted |= _written_surrogate(objective["surrogate"]) | _written_aggregation(objective["aggregation"])
        wanted |= _written_penalty(objective["penalty"], objective["ratio"])
        preset = NATIVE[ratio]
        came = FIELDS | PRESETS[preset]
        overrides = {OVERRIDES + key: value for key, value in wanted.items() if came[key] != value}
        return {"objective": preset, "beta": 0.0, **overrides}

    def gspo(self, clip: Mapping[str, Any], version: str) -> dict[str, Any]:
        """`GSPOConfig` and a clip range."""
        return {"clip_range_left": clip["low"], "clip_range_right": clip["high"]}


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping of overrides, as Python configurations have it, as single keys."""
    flat = dict(settings)
    nested = flat.pop("objective_overrides", None) or {}
    return flat | {OVERRIDES + key: value for key, value in nested.items()}


def _fields(every: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the objective that the trainer evaluates: the native one takes the clip range of the config, a named one its own."""
    native = every["objective"] is None
    name = ("gspo_token" if every["use_gspo_token"] else "gspo") if native else every["objective"]
    if name not in PRESETS:
        raise Inexpressible(f"the objective {name!r} of StateSet Agents is not of this family")
    fields = FIELDS | PRESETS[name]
    if native:
        fields |= {"clip_low": every["clip_range_left"], "clip_high": every["clip_range_right"]}
    if fields["kl"] != "none":
        fields["kl_coef"] = every["beta"]
    if fields["max_completion_length"] is None:
        fields["max_completion_length"] = every["max_completion_length"]
    return fields | {key.removeprefix(OVERRIDES): value for key, value in every.items() if key.startswith(OVERRIDES)}


def _surrogate(fields: Mapping[str, Any]) -> dict[str, Any]:
    if fields["clip"] == "cispo":
        return parts.cispo_below(fields["is_cap"])
    if fields["clip"] == "none":
        return {"kind": "unclipped"}
    return parts.held_clip(fields["clip_low"], fields["clip_high"], fields["delta"])


def _aggregation(fields: Mapping[str, Any]) -> dict[str, Any]:
    kind = fields["aggregate"]
    if kind == "seq_sum_const" and fields["max_completion_length"] is None:
        raise Inexpressible("StateSet Agents refuses seq_sum_const without a max_completion_length")
    constant = float(fields["max_completion_length"]) if kind == "seq_sum_const" else 1.0
    return parts.aggregation(AGGREGATIONS[kind], constant)


def _penalty(fields: Mapping[str, Any]) -> dict[str, Any] | None:
    if fields["kl"] == "none" or not fields["kl_coef"]:
        return None
    weight = RATIOS[fields["ratio"]] if fields["kl_bias_correction"] else None
    if weight == "gspo_token":
        raise Inexpressible("a KL term weighted by the ratio of GSPO-token is not of this family")
    return parts.kl_term("k3", fields["kl_coef"], importance=weight)


def _written_surrogate(surrogate: Mapping[str, Any]) -> dict[str, Any]:
    kind = surrogate["kind"]
    if kind == "clip":
        parts.check_dual(surrogate, "delta of StateSet Agents")
        return {"clip_low": surrogate["low"], "clip_high": surrogate["high"], "delta": surrogate["dual"]}
    if kind == "cispo" and surrogate["low"] is None:
        return {"clip": "cispo", "is_cap": surrogate["high"] + 1}
    if kind == "unclipped":
        return {"clip": "none"}
    raise Inexpressible(f"no clip of StateSet Agents is {kind} with these bounds")


def _written_aggregation(aggregation: Mapping[str, Any]) -> dict[str, Any]:
    mode, constant = aggregation["mode"], aggregation["constant"]
    kind = next((key for key, value in AGGREGATIONS.items() if value == mode), None)
    if kind is None or aggregation["count"] == "non_empty" or constant != int(constant):
        raise Inexpressible(
            f"no aggregate of StateSet Agents is {mode}, counting {aggregation['count']}, over {constant:g}"
        )
    return {"aggregate": kind, "max_completion_length": int(constant) if kind == "seq_sum_const" else None}


def _written_penalty(penalty: Mapping[str, Any] | None, ratio: str) -> dict[str, Any]:
    if penalty is None or not penalty["coefficient"]:
        return {"kl": "none"}
    plain = parts.plain_k3(penalty, "importance") and penalty["importance"] in (None, ratio)
    if not plain or ratio == "gspo_token":
        raise Inexpressible("the KL term of StateSet Agents is k3, plain or weighted by the ratio of its own level")
    weighted = penalty["importance"] is not None
    return {"kl": "k3_token", "kl_coef": penalty["coefficient"], "kl_bias_correction": weighted}


DIALECT = StateSetAgents()
