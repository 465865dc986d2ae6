"""What only Molt's arguments can do: pairs that it refuses, a KL term that nothing takes up, weights of the rewards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..dialect import Finding, entropy_bonus, kl_in_reward

ACTOR, KL, ADVANTAGE = "actor.", "algo.kl.", "algo.advantage."
CORRECTION, REWARDS = ADVANTAGE + "is_correction_", "reward.clip_range"
FILTER = "algo.dynamic_filtering_enable"
DISTILLED, WHITENED = "on_policy_distill", ("gae", "reinforce", "reinforce_baseline")
REWARDED = ("gae", "reinforce")
GROUPED = ("rloo", "reinforce_baseline", "grpo", "dr_grpo")
STALE = {"train.async_queue_size": 1, "train.partial_rollout_enable": False}


def findings(every: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Finding]:
    """Each point, where it holds; OpenRLHF has some of these arguments too, which tell nobody apart."""
    yield from _refused(every, settings)
    yield from _kl(every, settings)
    yield from _advantages(every)
    yield from _steps(every, settings)
    if every[FILTER]:
        low, high = settings.get("algo.dynamic_filtering_range") or (0, 1)
        told = f"groups whose mean score is not strictly between {low:g} and {high:g} are left out: equal scores between them stay"
        yield Finding("dynamic-sampling", "note", FILTER, told, "GSPO-REWARD-6")
    if every[ACTOR + "entropy_coef"]:
        key = ACTOR + "entropy_coef"
        yield entropy_bonus(key, every[key], f"--{key} 0")


def _refused(every: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Finding]:
    """What ends a run before its first step."""
    loss, (_, high) = every[ACTOR + "loss_mode"], every[ACTOR + "eps_clip_low_high"]
    level, mode, estimator = every[CORRECTION + "level"], every[CORRECTION + "mode"], every[ADVANTAGE + "estimator"]
    if loss == "cispo" and high < 1:
        told = f"the second number bounds the weight of cispo itself, and {high:g} is refused: it has to be 1 or more"
        yield _refusal(ACTOR + "eps_clip_low_high", told, "GSPO-SURR-8", "0.2 5.0, which is 1 + 4")
    dual = every[ACTOR + "dual_clip"]
    if dual is not None and (loss != "ppo" or dual <= 1):
        told = f"a dual clip of {dual:g} is refused" + (f" with {loss}" if loss != "ppo" else ": it has to be above 1")
        yield _refusal(ACTOR + "dual_clip", told, "GSPO-SURR-5")
    if level in ("seq", "geo") and mode != "mask":
        told = f"the level {level} drops whole responses, and is refused with {mode}"
        yield _refusal(CORRECTION + "mode", told, "GSPO-CORR-2", "mask")
    for key, plain in STALE.items():
        if level == "off" and settings.get(key, plain) not in (plain, None):
            told = "responses of older weights are refused without a correction"
            yield _refusal(CORRECTION + "level", f"{key} is set: {told}", "GSPO-CORR-5", "token")
    if level != "off" and float(settings.get("rollout.top_p", 1.0)) < 1:
        told = "the sampler's log-probabilities are those within top_p, and a correction to them is refused"
        yield _refusal("rollout.top_p", told, "GSPO-DATA-5", "1.0")
    if settings.get(ACTOR + "loss_agg_mode") is not None:
        told = "there is no such argument: PolicyTrainer never hands an aggregation to its loss"
        yield _refusal(ACTOR + "loss_agg_mode", told, "GSPO-AGG-1")
    if every["train.force_on_policy"] and every["train.max_epochs"] != 1:
        yield _refusal("train.max_epochs", "more than one epoch is refused with force_on_policy", "GSPO-RATIO-8", "1")
    if estimator not in (*REWARDED, *GROUPED, DISTILLED):
        yield _refusal(ADVANTAGE + "estimator", f"Molt has no estimator {estimator}", "GSPO-ADV-1", "grpo")


def _refusal(key: str, told: str, clause: str, instead: str = "") -> Finding:
    fix = f"--{key} {instead}" if instead else f"no --{key}"
    return Finding("refused", "error", key, told, clause, "the run stops before its first step", fix)


def _kl(every: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Finding]:
    coefficient, estimator, key = every[KL + "init_coef"], every[ADVANTAGE + "estimator"], KL + "init_coef"
    if coefficient <= 0:
        return
    if not every[KL + "use_loss"] and estimator in REWARDED:
        yield kl_in_reward(key, coefficient, f"--{key} 0")
    elif not every[KL + "use_loss"] and estimator in GROUPED:
        told = f"a KL coefficient of {coefficient:g} that nothing reads: {estimator} takes no KL term, and the loss has none"
        cost = "the reference model is loaded, and scores every rollout for the logs alone"
        yield Finding("kl-ignored", "note", key, told, "GSPO-REWARD-4", cost, f"--{key} 0")
    target = settings.get(KL + "target")
    if target and (every[KL + "use_loss"] or estimator in (*REWARDED, DISTILLED)):
        told = f"the KL coefficient is moved towards a KL of {target} from step to step"
        yield Finding("kl-schedule", "note", KL + "target", told, "GSPO-KL-1", fix=f"no --{KL}target")


def responses(every: Mapping[str, Any]) -> int:
    """How many a rollout has, as long as an agent takes one turn."""
    return int(every["rollout.batch_size"]) * int(every["rollout.n_samples_per_prompt"])


def _steps(every: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Finding]:
    """What does not fill an optimiser step is dropped; where microbatches are made by tokens, responses come in order of their length."""
    key, size, drawn = "train.batch_size", int(every["train.batch_size"]), responses(every)
    if every["train.force_on_policy"]:
        return
    if drawn < size:
        told = (
            f"a rollout of {drawn} responses fills no optimiser step of {size}: all are dropped, and nothing is learnt"
        )
        yield Finding("no-update", "error", key, told, fix=f"--{key} a quarter of the responses of a rollout")
        return
    sorted_by_length = settings.get("train.dynamic_batch_enable")
    if rest := drawn % size:
        told = f"{rest} of the {drawn} responses of a rollout fill no optimiser step and are dropped"
        told += ", the shortest" * bool(sorted_by_length)
        yield Finding("leftover", "note", key, told, fix=f"--{key} a divisor of {drawn}")
    if sorted_by_length and drawn >= 2 * size:
        told = "the responses of a rollout come to its optimiser steps by length, the longest first"
        yield Finding("length-order", "note", "train.dynamic_batch_enable", told)


def _advantages(every: Mapping[str, Any]) -> Iterator[Finding]:
    key, estimator = ADVANTAGE + "estimator", every[ADVANTAGE + "estimator"]
    if estimator == "grpo":
        told = "equal rewards of a group leave the rounding of their mean, divided by 1e-9: eight rewards of 0.1 give |A| = 0.83 in float32"
        yield Finding("tiny-eps", "note", key, told, "GSPO-ADV-3")
    if every[ADVANTAGE + "no_whiten"] and estimator not in WHITENED:
        told = f"no_whiten is read by nothing: {estimator} is not whitened"
        yield Finding("key-ignored", "note", ADVANTAGE + "no_whiten", told, "GSPO-ADV-10")
    low, high = every[REWARDS]
    if (low, high) != (-10, 10):
        told = f"rewards are clamped to [{low:g}, {high:g}] before they are compared"
        yield Finding("reward-clip", "note", REWARDS, told, "GSPO-REWARD-1")
