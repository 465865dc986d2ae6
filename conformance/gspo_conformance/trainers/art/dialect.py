"""ART's `backend.train(...)`, or `art.dev.TrainConfig`: `loss_fn` (or `ppo`) is the surrogate, `importance_sampling_level` the ratio."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .. import parts
from ..dialect import PAPER, Dialect, Inexpressible, Reading, completed
from .findings import findings

DEFAULTS: dict[str, Any] = {
    "loss_fn": "cispo",
    "ppo": None,
    "importance_sampling_level": "token",
    "epsilon": None,
    "epsilon_high": None,
    "max_negative_advantage_importance_sampling_weight": None,
    "mask_prob_ratio": False,
    "truncated_importance_sampling": None,
    "precalculate_logprobs": False,
    "kimi_k2_tau": None,
    "kl_penalty_coef": 0.0,
    "scale_rewards": True,
    "normalize_advantages": True,
    "advantage_balance": 0.0,
}
CAP = "max_negative_advantage_importance_sampling_weight"
RATIOS = ("token", "sequence")


class Art(Dialect):
    """`loss_fn="ppo"` is the surrogate of the paper; what comes without it is CISPO's."""

    name = "art"
    versions = ("0.5.18",)
    clip_keys = ("epsilon", "epsilon_high")
    fixes: ClassVar[dict[str, str]] = {
        "ratio": "importance_sampling_level='sequence'",
        "surrogate": "loss_fn='ppo' (ppo=True on the serverless backend)",
        "clip": "epsilon=3e-4, epsilon_high=4e-4",
        "dual": f"no {CAP}",
        "scale": "scale_rewards=True",
    }

    def read(self, settings: Mapping[str, Any], version: str) -> Reading:
        """What these arguments optimise; those of `art.dev.TrainConfig` may stand below `_config`, where alone None is a value."""
        said = {key: value for key, value in settings.items() if value is not None or key.startswith("_config.")}
        plain = {key.removeprefix("_config."): value for key, value in said.items()}
        given, every = completed(plain, DEFAULTS)
        if every["importance_sampling_level"] not in RATIOS:
            level = every["importance_sampling_level"]
            raise Inexpressible(
                f"the importance_sampling_level {level!r} of ART mixes the ratios of token and sequence"
            )
        objective = {
            **PAPER,
            "ratio": every["importance_sampling_level"],
            "surrogate": surrogate(every, given),
            "aggregation": {**PAPER["aggregation"], "count": "non_empty"},
            "correction": _correction(every),
        }
        scaled = every["scale_rewards"] and every["normalize_advantages"]
        return Reading(
            trainer=self.name,
            version=version,
            objective=objective,
            advantages={"center": "mean", "scale": "std" if scaled else "none", "ddof": 0, "eps": 1e-6},
            settings=every,
            given=frozenset(given),
            findings=tuple(findings(every, objective["surrogate"])),
        )

    def write(self, objective: Mapping[str, Any], version: str) -> dict[str, Any]:
        """The arguments of `backend.train` for an objective."""
        aggregation, penalty = objective["aggregation"], objective["penalty"]
        if objective["ratio"] not in RATIOS or objective["log_ratio_cap"] is not None:
            raise Inexpressible("the ratio of ART is that of a token or of a sequence, without a cap on its logarithm")
        if aggregation["mode"] != "sequence_mean_token_mean" or aggregation["constant"] != 1:
            raise Inexpressible(
                "ART weighs every token by the inverse length of its response and aggregates no other way"
            )
        if penalty is not None and penalty["coefficient"]:
            raise Inexpressible("ART's KL term is a part of the advantages, not of the loss")
        level = {"importance_sampling_level": objective["ratio"]}
        return level | _written_surrogate(objective["surrogate"]) | _written_correction(objective["correction"])

    def gspo(self, clip: Mapping[str, Any], version: str) -> dict[str, Any]:
        """`importance_sampling_level="sequence"`, all that the page on GSPO says, and a clip range: the surrogate stays CISPO's."""
        return {"importance_sampling_level": "sequence", "epsilon": clip["low"], "epsilon_high": clip["high"]}


def is_ppo(every: Mapping[str, Any]) -> bool:
    """Whether the clipped surrogate is asked for, by either of its names."""
    return bool(every["ppo"]) or every["loss_fn"] == "ppo"


def surrogate(every: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The surrogate with the defaults of its kind: 0.2 both ways, or for CISPO 1 and 4."""
    ppo, cap = is_ppo(every), every[CAP] or None
    low = every["epsilon"]
    low = (0.2 if ppo else 1.0) if low is None else low
    high = every["epsilon_high"]
    if high is None:
        high = low if ppo or given.get("epsilon_high", 0) is None else 4.0
    if ppo and cap is not None and cap <= 1:
        raise Inexpressible(f"with {CAP}={cap:g} no ratio is above 1")
    if ppo:
        return parts.clip(low, high if cap is None else min(high, round(cap - 1, 12)), cap)
    return parts.cispo(low, high if cap is None else min(high, parts.cispo_below(cap)["high"]))


def _correction(every: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The weight of the sampler, where its log-probabilities are kept beside the recomputed ones."""
    high = every["truncated_importance_sampling"]
    return [parts.weight("token", "clamp", high=high)] if high and every["precalculate_logprobs"] else []


def _written_surrogate(wanted: Mapping[str, Any]) -> dict[str, Any]:
    kind = wanted["kind"]
    if kind == "clip":
        dual, low, high = wanted["dual"], wanted["low"], wanted["high"]
        if dual is not None and dual < 1 + high:
            raise Inexpressible(
                "ART's dual clip bounds the ratio of every response: below 1 + epsilon_high it is another one"
            )
        return {"loss_fn": "ppo", "epsilon": low, "epsilon_high": high} | ({} if dual is None else {CAP: dual})
    if kind == "cispo":
        return {"loss_fn": "cispo", "epsilon": parts.cispo_low(wanted), "epsilon_high": wanted["high"]}
    raise Inexpressible(f"no loss_fn of ART is {kind}")


def _written_correction(corrections: Any) -> dict[str, Any]:
    if not corrections:
        return {}
    high = corrections[0]["high"]
    if list(corrections) != [parts.weight("token", "clamp", high=high)] or high is None:
        raise Inexpressible("ART's weights are those of tokens under the old policy, truncated above")
    return {"truncated_importance_sampling": high, "precalculate_logprobs": True}


DIALECT = Art()
