"""What only verl's keys can go wrong in: keys that never reach the loss, terms beside it, another denominator of the ratio."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..dialect import Finding, entropy_bonus, kl_in_reward

ACTOR, ROLLOUT = "actor_rollout_ref.actor.", "algorithm.rollout_correction."


def findings(mode: str, every: Mapping[str, Any], given: Mapping[str, Any], version: str) -> Iterator[Finding]:
    """Keys without effect, and terms and denominators that the objective does not show."""
    low, high = ACTOR + "clip_ratio_low", ACTOR + "clip_ratio_high"
    one = given.get(ACTOR + "clip_ratio")
    sides = [one if every[key] is None else every[key] for key in (low, high)]
    if one is not None and any(every[key] not in (one, None) for key in (low, high) if key not in given):
        told = f"clip_ratio = {one:g} never reaches the loss: the two sides have defaults of their own"
        cost, fix = f"the range in force is -{sides[0]:g} / +{sides[1]:g}", f"{low}=3e-4 {high}=4e-4"
        yield Finding("clip-range-ignored", "error", ACTOR + "clip_ratio", told, "GSPO-SURR-3", cost, fix)
    if mode == "gspo" and version == "0.9.0" and ACTOR + "loss_agg_mode" in given:
        key = ACTOR + "loss_agg_mode"
        told = "verl 0.9.0 ignores loss_agg_mode for gspo and uses seq-mean-token-mean; verl 0.9.1 obeys it"
        fix = f"{key}=seq-mean-token-mean, which means the same in both"
        yield Finding("aggregation-ignored", "note", key, told, "GSPO-AGG-1", fix=fix)
    yield from (*_width(every), *_terms(every), *_sampler(every))


def _width(every: Mapping[str, Any]) -> Iterator[Finding]:
    key = ACTOR + "loss_scale_factor"
    if every[ACTOR + "loss_agg_mode"] == "seq-mean-token-sum-norm" and every[key] is None:
        told = "without loss_scale_factor the sums over tokens are divided by the padded width of the batch, read here as data.max_response_length"
        yield Finding("padded-width", "note", key, told, "GSPO-AGG-4", fix=f"{key}={every['data.max_response_length']}")


def _terms(every: Mapping[str, Any]) -> Iterator[Finding]:
    entropy, key = every[ACTOR + "entropy_coeff"], ACTOR + "entropy_coeff"
    if entropy:
        yield entropy_bonus(key, entropy, f"{key}=0")
    if every["algorithm.use_kl_in_reward"]:
        key = "algorithm.use_kl_in_reward"
        yield kl_in_reward(key, every["algorithm.kl_ctrl.kl_coef"], f"{key}=False")


def _sampler(every: Mapping[str, Any]) -> Iterator[Finding]:
    if every[ROLLOUT + "rollout_is"] and every[ROLLOUT + "rollout_is_batch_normalize"]:
        key = ROLLOUT + "rollout_is_batch_normalize"
        told = "the weights are divided by their mean over the batch: what a response counts depends on the others"
        yield Finding("normalised-weights", "warning", key, told, "GSPO-CORR-4", fix=f"{key}=False")
    if every[ROLLOUT + "bypass_mode"]:
        key = ROLLOUT + "bypass_mode"
        told = "the ratio is to the log-probabilities of the inference engine: what the engines differ by enters it"
        cost = "the driver also puts the loss mode `bypass_mode`, a clip per token, in the place of the one named: where that reaches the workers, it is not GSPO"
        yield Finding("denominator", "warning", key, told, "GSPO-DATA-5", cost, f"{key}=False")
    if every[ROLLOUT + "rollout_rs"]:
        key = ROLLOUT + "rollout_rs"
        told = f"what differs too much from the sampler by {every[key]} leaves the mask, and with it the ratio and the mean"
        yield Finding("filter", "warning", key, told, "GSPO-CORR-2", fix=f"{key}=null")
