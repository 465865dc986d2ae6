"""What only Trinity-RFT's keys can do: one aggregation that replaces another, arguments that are replaced as a whole, keys without effect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..dialect import Finding, asides, entropy_bonus
from .functions import IN_TRAINER

ARGUMENTS, WEIGHTS = "algorithm.policy_loss_fn_args.", "algorithm.rollout_correction.rollout_"
BESIDE = {"algorithm.advantage_fn_args.std_threshold": "equal"}


def findings(every: Mapping[str, Any], given: Mapping[str, Any], arguments: Mapping[str, Any]) -> Iterator[Finding]:
    """Each point, worst first."""
    yield from _loss(every, given, arguments)
    yield from _kl(every, given)
    yield from _advantages(every)
    yield from _rest(every)
    yield from _synchronised(every)
    yield from asides(every, BESIDE)


def interval(every: Mapping[str, Any], role: str) -> int:
    """Steps of the trainer or of the explorer between two synchronisations."""
    own = every[f"synchronizer.{role}_sync_interval"]
    return int(every["synchronizer.sync_interval"] if own is None else own)


def between_synchronisations(every: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Responses that the explorer makes and that the trainer takes between two synchronisations; None where a size is not given."""
    tasks, part = every["buffer.batch_size"], every["buffer.train_batch_size"]
    made = int(tasks) * int(every["algorithm.repeat_times"]) * interval(every, "explorer") if tasks else None
    if part:
        return made, int(part) * interval(every, "trainer")
    return made, made and made // interval(every, "explorer") * interval(every, "trainer")


def _synchronised(every: Mapping[str, Any]) -> Iterator[Finding]:
    made, taken = between_synchronisations(every)
    if every["synchronizer.sync_style"] != "fixed" or made is None or taken is None or made == taken:
        return
    told = f"between two synchronisations the explorer makes {made} responses and the trainer takes {taken}"
    cost = (
        "the trainer falls behind, on ever older responses"
        if made > taken
        else "the trainer waits for responses that are made after the next one"
    )
    key, steps = "synchronizer.trainer_sync_interval", made * interval(every, "trainer") / taken
    fix = f"{key}: {steps:g}" if steps >= 1 and steps.is_integer() else ""
    yield Finding("backlog", "error", key, told, "GSPO-RATIO-8", cost, fix)


def _loss(every: Mapping[str, Any], given: Mapping[str, Any], arguments: Mapping[str, Any]) -> Iterator[Finding]:
    yield from _mode(every, given, arguments)
    loss = every["algorithm.policy_loss_fn"]
    sides = [arguments.get(f"clip_range_{side}", 0) for side in ("low", "high")]
    if loss in ("gspo", "ppo") and arguments["clip_range"] is None and None in sides:
        told = "the arguments that are given replace all that come with the loss, its clip range too: the run stops when it is made"
        fix = "algorithm.policy_loss_fn_args: {clip_range_low: 0.0003, clip_range_high: 0.0004}"
        yield Finding("refused", "error", ARGUMENTS + "clip_range_low", told, "GSPO-SURR-3", fix=fix)
    if arguments.get("enable_sequence_masking"):
        told = f"tokens with a negative advantage lose their gradient where the mean log-ratio of the response is below -{arguments['delta_sequence_masking']:g}"
        yield Finding("sequence-mask", "warning", ARGUMENTS + "enable_sequence_masking", told, "GSPO-CORR-6")
    if arguments.get("fallback_to_policy_gradient"):
        key = ARGUMENTS + "fallback_to_policy_gradient"
        yield Finding(
            "ratio-forced", "error", key, "the ratio is 1: nothing is ever clipped", "GSPO-RATIO-8", fix=f"{key}: false"
        )
    if arguments.get("tau"):
        told = f"the policy loss is divided by 1 + tau = {1 + arguments['tau']:g}"
        yield Finding("loss-scale", "note", ARGUMENTS + "tau", told, "GSPO-SURR-7", fix=f"{ARGUMENTS}tau: 0")
    if arguments.get("enable_mask_clip"):
        key, told = (
            ARGUMENTS + "enable_mask_clip",
            "tokens outside a second range lose their gradient, as a clip has it",
        )
        yield Finding("clip-mask", "warning", key, told, "GSPO-SURR-8", fix=f"{key}: false")
    if loss == "sapo":
        told = (
            "the value of the gate weighs the log-probability: on policy that is 2/τ, where the slope of the gate is 1"
        )
        yield Finding("gate-value", "warning", "algorithm.policy_loss_fn", told, "GSPO-SURR-10")


def _mode(every: Mapping[str, Any], given: Mapping[str, Any], arguments: Mapping[str, Any]) -> Iterator[Finding]:
    """Two keys for one aggregation: that of the arguments is replaced, and without it the other reaches the KL term alone."""
    inner, outer, found = ARGUMENTS + "loss_agg_mode", "algorithm.loss_agg_mode", arguments["loss_agg_mode"]
    if given.get(inner) not in (None, found):
        told = f"{given[inner]} is replaced by {outer}, which is {found}"
        yield Finding("key-ignored", "error", inner, told, "GSPO-AGG-1", fix=f"{outer}: {given[inner]}")
    if given.get(outer) not in (None, found):
        told = f"{given[outer]} does not reach the policy loss, whose arguments are given without loss_agg_mode: it has its own, {found}"
        yield Finding("key-ignored", "error", outer, told, "GSPO-AGG-1", fix=f"{inner}: {given[outer]}")


def _kl(every: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[Finding]:
    key = "algorithm.kl_penalty_fn"
    if every[key] == "none" or not every[key + "_args.kl_coef"]:
        return
    if every["algorithm.algorithm_type"] not in IN_TRAINER:
        told = "there is no KL penalty: advantages are made by the explorer, from the rewards alone"
        yield Finding("kl-ignored", "error", key, told, "GSPO-REWARD-4", fix=f"{key}: none")
    else:
        told = "a KL penalty is taken from the reward of every token"
        yield Finding("kl-in-reward", "warning", key, told, "GSPO-REWARD-4", fix=f"{key}: none")


def _advantages(every: Mapping[str, Any]) -> Iterator[Finding]:
    if int(every["algorithm.repeat_times"]) == 1 and every["algorithm.advantage_fn"] in ("grpo", "opmd", "rec", "rloo"):
        told = "one response per task, whatever the algorithm's own default: its advantage is its reward, without a baseline"
        key = "algorithm.repeat_times"
        yield Finding("group-size", "error", key, told, "GSPO-ADV-4", fix=f"{key}: 8")
    shift = "algorithm.advantage_fn_args.baseline_shift"
    if every["algorithm.advantage_fn"] == "asymre" and every[shift]:
        told = f"the baseline is the mean of the group {every[shift]:+g}: advantages of a group have the mean {-every[shift]:g}"
        yield Finding("baseline-shift", "warning", shift, told, "GSPO-ADV-1", fix=f"{shift}: 0")
    if every["algorithm.advantage_fn_args.rank_penalty"] is not None:
        key = "algorithm.advantage_fn_args.rank_penalty"
        told = "rewards are lowered by the rank of their response's mean log-probability"
        yield Finding("rank-penalty", "warning", key, told, "GSPO-ADV-1", fix=f"{key}: null")


def _rest(every: Mapping[str, Any]) -> Iterator[Finding]:
    if every["algorithm.entropy_loss_fn_args.entropy_coef"]:
        key = "algorithm.entropy_loss_fn_args.entropy_coef"
        yield entropy_bonus(key, every[key], f"{key}: 0")
    correction = next((key for key, value in every.items() if key.startswith(WEIGHTS) and value), None)
    if correction:
        told = (
            "with verl 0.8 or later it has no effect: the loss that it is handed to is replaced by one without weights"
        )
        yield Finding("key-ignored", "warning", correction, told, "GSPO-CORR-5", fix=f"no {correction}")
    if every["algorithm.bypass_old_logprobs"]:
        key = "algorithm.bypass_old_logprobs"
        told = "the ratio is to the log-probabilities of the sampler, whose numerics enter s_i"
        cost = "the code of 0.6.0 calls its own recomputation not fully validated with verl 0.8 or later"
        yield Finding("old-policy", "note", key, told, "GSPO-DATA-5", cost, f"{key}: false")
    told = "with verl 0.8 or later every micro-batch is averaged on its own and their gradients are added: a step of n of them is n times the paper's"
    cost = "n follows the lengths of the responses where trainer.use_dynamic_bsz is true, which it is unless set"
    yield Finding("micro-batches-add", "note", "trainer.use_dynamic_bsz", told, "GSPO-DIST-1", cost)
