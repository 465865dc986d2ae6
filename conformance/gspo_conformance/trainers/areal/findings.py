"""What only AReaL can get wrong: where the ratio's denominator comes from, batch-level normalisation, groups of one, KL in the rewards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..dialect import Finding, Reading

GONE = ("behav_imp_weight_cap", "behave_imp_weight_cap", "behave_imp_weight_mode", "dynamic_sampling", "group_size")


def findings(every: Mapping[str, Any], settings: Mapping[str, Any], reading: Reading) -> Iterator[Finding]:
    """All of them."""
    sequence = reading.objective["ratio"] == "sequence"
    yield from _dropped(every, settings)
    yield from _denominator(every, reading, sequence)
    yield from _kl(every, sequence)
    yield from _norms(every)
    if "actor.group_size" in reading.given:
        told = f"group_size = {every['actor.group_size']} is the group of dynamic sampling alone; the baseline has reward_norm.group_size"
        yield Finding("group-size", "note", "actor.group_size", told, "GSPO-REWARD-6")
    scaled = (every["actor.reward_scaling"], every["actor.reward_bias"]) != (1.0, 0.0)
    if scaled and not (reading.advantages and reading.advantages["scale"] == "std"):
        told = "rewards are scaled and shifted before anything else, and no standard deviation of a group undoes that"
        yield Finding("reward-scale", "note", "actor.reward_scaling", told, "GSPO-REWARD-1")
    if every["actor.mask_no_eos_with_zero"]:
        told = "the reward of a truncated response becomes 0 after the normalisation, not before"
        yield Finding("truncated-reward", "note", "actor.mask_no_eos_with_zero", told, "GSPO-REWARD-7")
    if every["actor.m2_threshold"] is not None:
        told = "tokens that drifted furthest are taken out of the mask, and out of the sequence ratio with it"
        yield Finding("token-mask", "warning", "actor.m2_threshold", told, "GSPO-CORR-2", "", "actor.m2_threshold=null")


def _dropped(every: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Finding]:
    for name in GONE:
        key = next((key for key in (f"actor.{name}", name) if key in settings), None)
        if key and f"actor.{name}" not in every:
            told = f"{name} is not a key of this version"
            fix = "actor.rejection_sampling.upper" if "weight" in name else ""
            yield Finding("key-ignored", "warning" if settings[key] else "note", key, told, "", "", fix)


def _denominator(every: Mapping[str, Any], reading: Reading, sequence: bool) -> Iterator[Finding]:
    if every["actor.use_decoupled_loss"]:
        yield from _decoupled(every, reading, sequence)
    elif not every["actor.recompute_logprob"]:
        told = "the ratio is to the log-probabilities of the inference engine: what the engines differ by enters it"
        key = "actor.recompute_logprob"
        yield Finding("denominator", "note", key, told, "GSPO-DATA-5", fix=f"{key}=true")


def _decoupled(every: Mapping[str, Any], reading: Reading, sequence: bool) -> Iterator[Finding]:
    key, cap = "actor.use_decoupled_loss", every.get("actor.behav_imp_weight_cap")
    told = "the denominator of the ratio is the policy recomputed before the update, not the one that sampled"
    if every.get("actor.prox_logp_method") == "loglinear":
        told = "a token's log-ratio is the one to the sampler, divided by how many versions ago it was sampled"
    cost = f"{'a' if reading.objective['correction'] else 'no'} weight corrects for the sampler"
    fix = f"{key}=false, actor.recompute_logprob=true"
    yield Finding("decoupled-denominator", "warning", key, told, "GSPO-CORR-5", cost, fix)
    if cap is not None:
        told = f"the cap of {cap:g} does not cap: a token whose weight exceeds it is dropped, and still counted in the mean"
        cost, own = "weights per token under a ratio per sequence" if sequence else "", "actor.behav_imp_weight_cap"
        yield Finding("behaviour-cap", "warning", own, told, "GSPO-CORR-2", cost, f"{key}=false")
    if every.get("actor.rejection_sampling"):
        yield from _rejected(every, "actor.rejection_sampling", sequence)


def _rejected(every: Mapping[str, Any], key: str, sequence: bool) -> Iterator[Finding]:
    """Gates on what is not the weight itself, and those that take tokens out of the ratio."""
    metric, level, agg = (every[f"{key}.{name}"] for name in ("metric", "level", "agg"))
    what = metric if level == "token" else f"the {agg} of {metric}"
    if metric != "ratio" or (level == "sequence" and agg == "max"):
        told = (
            f"what differs too much from the sampler by {what} leaves the mask; the weights of the rest have no bound"
        )
        yield Finding("filter", "warning", f"{key}.metric", told, "GSPO-CORR-2", fix=f"{key}.metric=ratio")
    if level == "token" and every[f"{key}.action"] == "mask" and sequence:
        told = "rejected tokens leave the mask before the ratio: the ratio and the advantage average over those that are kept"
        cost, fix = "the denominator of the loss still counts them", f"{key}.level=sequence"
        yield Finding("filter", "warning", f"{key}.action", told, "GSPO-CORR-2", cost, fix)


def _kl(every: Mapping[str, Any], sequence: bool) -> Iterator[Finding]:
    if every["actor.kl_ctl"]:
        told = f"a KL penalty ({every['actor.kl_estimator']}, coefficient {every['actor.kl_ctl']:g}) is taken from the rewards of the tokens"
        cost = "the advantage of a response is then the mean over its tokens of what is left" if sequence else ""
        yield Finding("kl-in-reward", "warning", "actor.kl_ctl", told, "GSPO-REWARD-4", cost, "actor.kl_ctl=0")


def _norms(every: Mapping[str, Any]) -> Iterator[Finding]:
    mean, others, std = (
        every.get(f"actor.reward_norm.{name}") for name in ("mean_level", "mean_leave1out", "std_level")
    )
    if every["actor.reward_norm"] and std and (others or (mean, std) not in (("group", "group"), ("batch", "batch"))):
        told = "the spread is taken about what the rewards are lessened by, not about the mean of what it is taken over"
        yield Finding("spread-about", "note", "actor.reward_norm.std_level", told, "GSPO-ADV-2")
    for outer in ("actor.reward_norm", "actor.adv_norm"):
        levels = [every.get(f"{outer}.{name}") for name in ("mean_level", "std_level")] if every[outer] else []
        if "group" in levels and every[f"{outer}.group_size"] == 1:
            key, told = (
                f"{outer}.group_size",
                "normalisation per group with group_size 1, the default: every response is a group of its own",
            )
            cost = "all advantages are 0 and nothing is learnt, or it stops with IndexError (981e3f68)"
            yield Finding(
                "group-size", "error", key, told, "GSPO-ADV-4", cost, f"{key}=the number of responses a prompt has"
            )
        if "group" in levels and outer == "actor.adv_norm":
            told = (
                "advantages are normalised over the tokens of a group: long responses weigh more in its mean and spread"
            )
            yield Finding(
                "token-weighted-group", "warning", f"{outer}.mean_level", told, "GSPO-ADV-1", fix=f"{outer}=null"
            )
