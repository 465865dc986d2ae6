"""What only NeMo-RL's keys can do: pairs that it refuses, ratios that are forced, KL terms that vanish."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..dialect import Finding

LOSS, ESTIMATOR = "loss_fn.", "grpo.adv_estimator."


def findings(every: Mapping[str, Any]) -> Iterator[Finding]:
    """Each point, where it holds."""
    yield from _refused(every)
    yield from _ratio(every)
    yield from _kl(every)
    yield from _advantages(every)
    weight = every[LOSS + "positive_example_nll_weight"]
    if weight:
        key = LOSS + "positive_example_nll_weight"
        told = f"the negative log-likelihood of responses with a positive reward is added, times {weight:g}"
        yield Finding("likelihood-term", "warning", key, told, "GSPO-SURR-1", fix=f"{key}=0")


def _refused(every: Mapping[str, Any]) -> Iterator[Finding]:
    """Pairs of keys with which the loss is not made."""
    own = {key.removeprefix(LOSS): value for key, value in every.items()}
    kind, high, low = (own[f"truncated_importance_sampling_{name}"] for name in ("type", "ratio", "ratio_min"))
    sequence = own["sequence_level_importance_ratios"]
    pairs = {
        "truncated_importance_sampling_type": kind is not None
        and (not own["use_importance_sampling_correction"] or (kind == "seq-mask-tis" and sequence)),
        "truncated_importance_sampling_ratio": kind is not None and not high,
        "truncated_importance_sampling_ratio_min": kind in ("icepop", "seq-mask-tis") and low is None,
        "use_cispo": own["use_cispo"]
        and (
            own["disable_ppo_ratio"]
            or own["force_on_policy_ratio"]
            or sequence
            or own["ratio_clip_c"] is not None
            or not own["token_level_loss"]
        ),
    }
    for key in (key for key, refused in pairs.items() if refused):
        told = f"NeMo-RL refuses {key} = {own[key]} with the other keys that are set"
        yield Finding("refused", "error", LOSS + key, told, consequence="the run stops when the loss is made")


def _ratio(every: Mapping[str, Any]) -> Iterator[Finding]:
    if every[LOSS + "sequence_level_importance_ratios"] and every[LOSS + "token_level_loss"]:
        key = LOSS + "token_level_loss"
        told = "NeMo-RL refuses sequence_level_importance_ratios with the mean over tokens"
        yield Finding(
            "refused", "error", key, told, "GSPO-AGG-1", "the run stops when the loss is made", f"{key}=false"
        )
    if every[LOSS + "force_on_policy_ratio"]:
        key = LOSS + "force_on_policy_ratio"
        told = "the ratio is set to 1: nothing is ever clipped, whatever the other keys say"
        yield Finding("ratio-forced", "error", key, told, "GSPO-RATIO-8", fix=f"{key}=false")


def _kl(every: Mapping[str, Any]) -> Iterator[Finding]:
    coefficient = every[LOSS + "reference_policy_kl_penalty"]
    if not coefficient:
        return
    if every[LOSS + "use_on_policy_kl_approximation"] and not every[LOSS + "use_kl_in_reward"]:
        key = LOSS + "use_on_policy_kl_approximation"
        told = "the weight of the KL term is the ratio to the sampler, not to the old policy"
        yield Finding("kl-sampler", "note", key, told, "GSPO-KL-5")
    elif not every[LOSS + "use_kl_in_reward"]:
        key = LOSS + "reference_policy_kl_penalty"
        told = "the gradient of the KL term has that of the sampling probability in it, as if its value were a reward"
        yield Finding("kl-score", "note", key, told, "GSPO-KL-5")
        return
    key, estimator = LOSS + "use_kl_in_reward", every[ESTIMATOR + "name"]
    if estimator in ("grpo", "gdpo"):
        told = f"the KL term leaves the loss, and the advantages of {estimator} do not take it up: there is none"
        yield Finding("kl-ignored", "error", key, told, "GSPO-REWARD-4", fix=f"{key}=false")
    else:
        told = f"a KL penalty of {coefficient:g} is taken from the advantage of every token"
        yield Finding("kl-in-reward", "warning", key, told, "GSPO-REWARD-4", fix=f"{key}=false")


def _advantages(every: Mapping[str, Any]) -> Iterator[Finding]:
    bounds = [every[f"grpo.advantage_clip_{side}"] for side in ("low", "high")]
    if any(bound is not None for bound in bounds):
        key = f"grpo.advantage_clip_{'low' if bounds[0] is not None else 'high'}"
        yield Finding("advantage-clip", "warning", key, "advantages are clipped", "GSPO-ADV-12", fix=f"{key}=null")
    if every["grpo.overlong_filtering"]:
        told = "truncated responses leave the loss and its count"
        yield Finding("overlong-filter", "note", "grpo.overlong_filtering", told, "GSPO-AGG-7")
    alone = every[ESTIMATOR + "use_leave_one_out_baseline"]
    if every[ESTIMATOR + "name"] == "grpo" and alone and every[ESTIMATOR + "normalize_rewards"]:
        told = "mean and standard deviation are those of the other responses: the only success of a group is not divided at all"
        cost = (
            "of rewards 1, 0, 0, 0, 0, 0 the winner has 0.447 of the weight that its group gives it, against the losers"
        )
        key = "grpo.use_leave_one_out_baseline"
        yield Finding("lone-winner", "warning", key, told, "GSPO-ADV-6", cost, f"{key}=false")
