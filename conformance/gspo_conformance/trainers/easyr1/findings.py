"""What only EasyR1's keys can go wrong in: a mean over micro-batches, a KL term that comes by itself, names that nothing checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..dialect import Finding, kl_in_reward

ACTOR, ALGORITHM, GROUP = "worker.actor.", "algorithm.", "worker.rollout.n"
LOSSES = "loss_type"
NAMES = ("default", "gspo", "gspo_token", "cispo", "sapo")
REWARD = "worker.reward.reward_function_kwargs"
OVERLONG = f"{REWARD}.overlong_penalty_factor"
# What these estimators do to a batch of more than one response.
STOPPING = {
    "gae": "asks whether a column of the mask is true, which PyTorch answers for one response alone",
    "remax": "multiplies one number a response by the mask of its tokens, and the shapes differ",
}
BESIDE = {ALGORITHM + "online_filtering": "equal", OVERLONG: "overlong"}


def findings(every: Mapping[str, Any]) -> Iterator[Finding]:
    """Each point, where it holds."""
    if every[ACTOR + LOSSES] not in NAMES:
        key = ACTOR + LOSSES
        told = f"{LOSSES} = {every[key]!r} is none of EasyR1's losses; nothing checks it, and it runs as `default`, a clip per token"
        yield Finding("key-ignored", "error", key, told, "GSPO-RATIO-2", fix=f"{key}=gspo")
    if every[ACTOR + "loss_avg_mode"] == "seq":
        yield _micro_batches(every)
    yield from _penalty(every)
    if every[ALGORITHM + "adv_estimator"] in STOPPING:
        key = ALGORITHM + "adv_estimator"
        told = f"{every[key]} {STOPPING[every[key]]}"
        yield Finding(
            "refused", "error", key, told, "GSPO-ADV-1", "the run stops at its first advantages", f"{key}=grpo"
        )


def _micro_batches(every: Mapping[str, Any]) -> Finding:
    """The mean over responses is one of a micro-batch, times its share of the tokens of the step."""
    size, dynamic = every[ACTOR + "micro_batch_size_per_device_for_update"], every[ACTOR + "dynamic_batching"]
    alone = size == 1 and not dynamic
    key = ACTOR + "micro_batch_size_per_device_for_update"
    told = "the mean over responses is one of each micro-batch, and micro-batches weigh by their tokens"
    cost = (
        "with one response in each this is the mean over tokens: response i counts G|y_i|/Σ|y| times"
        if alone
        else "a response counts the mean length of its micro-batch over that of the step: long ones rule where micro-batches are small"
    )
    fix = f"{key} as large as memory holds"
    return Finding("micro-batches", "error" if alone else "warning", key, told, "GSPO-DIST-1", cost, fix)


def _penalty(every: Mapping[str, Any]) -> Iterator[Finding]:
    disabled, as_loss = every[ALGORITHM + "disable_kl"], every[ALGORITHM + "use_kl_loss"]
    coefficient = every[ALGORITHM + "kl_coef"]
    if disabled and as_loss:
        key = ALGORITHM + "use_kl_loss"
        told = "disable_kl leaves no reference: use_kl_loss has no effect"
        yield Finding("key-ignored", "note", key, told, "GSPO-KL-1", fix=f"{key}=false")
    if not disabled and not as_loss and coefficient:
        key = ALGORITHM + "disable_kl"
        yield kl_in_reward(key, coefficient, f"{key}=true")
    if not disabled and as_loss and every[ALGORITHM + "kl_type"] == "adaptive":
        key = ALGORITHM + "kl_type"
        told = "the controller moves the KL term of the rewards alone; that of the loss keeps kl_coef"
        yield Finding("key-ignored", "warning", key, told, "GSPO-KL-7", fix=f"{key}=fixed")
