"""What only Cosmos-RL's keys can do: two temperatures, means of mini-batches, keys that take the place of others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..dialect import Finding, entropy_bonus

POLICY = "train.train_policy."
TELL_GRPO = ("type", "temperature", "epsilon_low", "epsilon_high", "kl_beta", "use_remote_reward")


def findings(own: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[Finding]:
    """Each point, where it holds."""
    yield from _refused(own)
    yield from _taken_for_demonstrations(given)
    yield from _without_effect(own, given)
    yield from _denominator(own)
    yield from _beside_the_loss(own)
    if own["loss_type"] == "token-mean":
        told = f"the mean over tokens is that of a mini-batch of {own['mini_batch']} responses, and mini-batches weigh by their responses"
        cost = "a response weighs by its share of the tokens of the few that it is computed with; balance_dp_token counts over ranks, not over mini-batches"
        fix = POLICY + 'loss_type = "seq-mean-token-mean"'
        yield Finding("micro-batch-mean", "note", POLICY + "mini_batch", told, "GSPO-AGG-8", cost, fix)
    if own["min_filter_prefix_tokens"] is not None:
        key = POLICY + "min_filter_prefix_tokens"
        told = "tokens that responses with different rewards begin with leave the mask, and with it the ratio and the length of the response"
        yield Finding("token-mask", "note", key, told, "GSPO-DATA-1", fix=f"no {key}")


def tells(given: Mapping[str, Any]) -> bool:
    """Whether a key says that this is GRPO, or `type` what it is."""
    return any(POLICY + key in given for key in TELL_GRPO)


def _refused(own: Mapping[str, Any]) -> Iterator[Finding]:
    if own["uncentralized_training"] and own["variant"] != "grpo":
        key = POLICY + "uncentralized_training"
        told = f"uncentralized_training is refused with the variant {own['variant']}"
        yield Finding("refused", "error", key, told, "GSPO-RATIO-2", fix=f"{key} = false")
    if own["use_decoupled_loss"] and own["use_rollout_logprobs_for_loss"]:
        key = POLICY + "use_rollout_logprobs_for_loss"
        told = "use_decoupled_loss and use_rollout_logprobs_for_loss are refused together"
        yield Finding("refused", "error", key, told, "GSPO-DATA-5", fix=f"{key} = false")


def _taken_for_demonstrations(given: Mapping[str, Any]) -> Iterator[Finding]:
    if POLICY + "variant" in given and not tells(given):
        told = f"without type, and without one of {', '.join(TELL_GRPO[1:])}, the section is read as one of supervised fine-tuning"
        cost = "variant is then read by nothing"
        yield Finding("not-policy", "error", POLICY + "type", told, "GSPO-RATIO-2", cost, POLICY + 'type = "grpo"')


def _without_effect(own: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[Finding]:
    """Keys that are set and that another setting leaves unread."""
    bounds = ("epsilon_low", "epsilon_high", "lower_bound_ratio")
    unread = {
        "behav_imp_weight_cap": ("use_decoupled_loss is not set", not own["use_decoupled_loss"]),
        "lower_bound_ratio": ("gspo has no dual clip", own["variant"] == "gspo" and own["aipo_rho"] is None),
        "unbiased_loss_max_tokens": (
            f"loss_type is {own['loss_type']}",
            own["loss_type"] != "seq-mean-token-mean",
        ),
        "unbiased_kl_estimate": ("kl_beta is 0", not own["kl_beta"]),
    }
    if own["aipo_rho"] is not None:
        unread |= dict.fromkeys(bounds, ("aipo_rho takes its place", True))
    for name, (why, holds) in unread.items():
        if holds and POLICY + name in given and own[name] not in (None, False):
            told = f"{name} = {own[name]} is read by nothing: {why}"
            yield Finding("key-ignored", "note", POLICY + name, told, "GSPO-SURR-1", fix=f"no {POLICY}{name}")


def _denominator(own: Mapping[str, Any]) -> Iterator[Finding]:
    """What the ratio is to, and at which temperature."""
    if own["use_rollout_logprobs_for_loss"]:
        key = POLICY + "use_rollout_logprobs_for_loss"
        told = "the ratio is to the log-probabilities of the sampler, whose numerics enter s_i"
        yield Finding("old-policy", "note", key, told, "GSPO-DATA-5", fix=f"{key} = false")
    mine, sampled = own["temperature"], own["rollout.sampling_config.temperature"]
    if mine != sampled and mine > 0:
        key = POLICY + "temperature"
        told = f"the loss divides logits by {mine:g}, and responses are sampled at rollout.sampling_config.temperature, {sampled:g}"
        cost = "the policy of the loss is another than the one that sampled, before any update"
        fix = f"rollout.sampling_config.temperature = {mine:g}"
        yield Finding("temperature", "warning", key, told, "GSPO-DATA-5", cost, fix)


def _beside_the_loss(own: Mapping[str, Any]) -> Iterator[Finding]:
    if own["entropy_coeff"] > 0:
        key = POLICY + "entropy_coeff"
        yield entropy_bonus(key, own["entropy_coeff"], f"{key} = 0.0")
    if own["positive_nll_coef"]:
        key = POLICY + "positive_nll_coef"
        told = "a likelihood loss on the responses with a positive reward is added"
        yield Finding("extra-term", "warning", key, told, "GSPO-SURR-1", fix=f"no {key}")
    if own["distillation.enable"]:
        told = "a KL term to a teacher is added to the advantages, token by token"
        key = "distillation.enable"
        yield Finding("kl-in-advantage", "warning", key, told, "GSPO-KL-7", fix=f"{key} = false")
