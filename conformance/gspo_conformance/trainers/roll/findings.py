"""What only ROLL can get wrong: bounds that bind, keys that one version reads and another drops, weights on the loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import sqrt
from typing import Any

from ..dialect import Finding, Reading, clamped, lone

OLD_NORM = ("reward_norm", "reward_shift", "reward_scale")
NEW_KEYS = ("use_pg_clip_range", "pg_clip_low", "pg_clip_high", "norm_mean_type", "norm_std_type")


def findings(every: Mapping[str, Any], settings: Mapping[str, Any], reading: Reading) -> Iterator[Finding]:
    """All of them."""
    yield from _dropped(every, settings)
    yield from _bounds(every, reading)
    yield from _norms(every)
    yield from _group(every, reading)
    yield from _weights(every)
    yield from _masks(every)
    if every["add_token_level_kl"] and every["init_kl_coef"]:
        told = f"a KL penalty ({every['kl_penalty']}, coefficient {every['init_kl_coef']:g}) is taken from the rewards of the tokens"
        cost = "advantages differ from token to token, so that the sequence ratio no longer has one advantage"
        yield Finding(
            "kl-in-reward", "warning", "add_token_level_kl", told, "GSPO-REWARD-4", cost, "add_token_level_kl: false"
        )
    if every.get("force_disable_old_logprobs_recompute"):
        key = "force_disable_old_logprobs_recompute"
        told = "the old policy of a response is the policy that first sees it: with one epoch every ratio is 1"
        yield Finding("ratio-forced", "error", key, told, "GSPO-RATIO-8", fix=f"{key}: false")
    if not every["use_kl_loss"] and every["kl_loss_coef"]:
        told = f"kl_loss_coef = {every['kl_loss_coef']:g} has no effect while use_kl_loss is false"
        yield Finding("key-ignored", "note", "kl_loss_coef", told)


def _dropped(every: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Finding]:
    """Unknown keys are dropped without a word, because the configuration is read non-strictly."""
    for key in (*OLD_NORM, *NEW_KEYS):
        if key in settings and key not in every:
            severity = "warning" if settings[key] else "note"
            told = f"{key} is not read by this version: it is dropped silently"
            fix = "norm_mean_type and norm_std_type" if key in OLD_NORM else "pg_clip, reward_norm"
            yield Finding("key-ignored", severity, key, told, "", "", f"this version has {fix}")


def _bounds(every: Mapping[str, Any], reading: Reading) -> Iterator[Finding]:
    group = int(every["num_return_sequences_in_group"])
    widest = (group - 1) / sqrt(group)
    scaled = bool(reading.advantages) and reading.advantages.get("scale") == "std"
    clip = every["advantage_clip"]
    if clip:
        reach = f"a lone success among {group} has A = {widest:.2f}" if scaled and not reading.whiten else ""
        binds = not reach or widest > clip
        told = f"advantages are clamped to ±{clip:g}, the paper's are not"
        severity = "warning" if binds else "note"
        yield Finding("advantage-clip", severity, "advantage_clip", told, "GSPO-ADV-12", reach, "advantage_clip: null")
    if every["reward_clip"]:
        bound = every["reward_clip"]
        yield clamped("reward_clip", f"±{bound:g}", bound, group, scaled, "reward_clip: null")


def _group(every: Mapping[str, Any], reading: Reading) -> Iterator[Finding]:
    """A group of one; the pipeline for agents groups trajectories by other keys."""
    key, grouped = "num_return_sequences_in_group", (reading.advantages or {}).get("center") == "mean"
    if grouped and every[key] == 1 and "ratio_type" not in every:
        yield lone(key, "its advantage is NaN, or the run stops (c0c0d2b1)", f"{key}: 8")


def _norms(every: Mapping[str, Any]) -> Iterator[Finding]:
    kinds = (every.get("norm_mean_type"), every.get("norm_std_type"), every.get("reward_norm"))
    if "running" in kinds and every["adv_estimator"] != "grpo":
        told = "running normalisation stops with KeyError: moments are kept by the name of a domain and looked up as 'domain'"
        key = "reward_norm" if every.get("reward_norm") else "norm_mean_type"
        yield Finding("running-norm", "error", key, told, "GSPO-REWARD-3", "", "adv_estimator: grpo")
    if (
        every.get("norm_std_type") == "group"
        and every["norm_mean_type"] != "group"
        and every["adv_estimator"] != "grpo"
    ):
        told = "norm_std_type group without norm_mean_type group divides every reward by the spread of every group"
        cost = "the rewards come out as a matrix, groups by responses, instead of one number a response"
        yield Finding("norm-shape", "error", "norm_std_type", told, "GSPO-REWARD-2", cost, "norm_mean_type: group")
    if every.get("reward_scale") and every["reward_norm"] in ("group", "batch") and not every["reward_shift"]:
        told = (
            f"reward_scale has no effect with reward_norm {every['reward_norm']}: the mean is subtracted all the same"
        )
        yield Finding("key-ignored", "warning", "reward_scale", told, "GSPO-REWARD-2")
    if every["whiten_rewards"]:
        told = "the rewards of all tokens are whitened, so that tokens without a reward get one"
        yield Finding("reward-whitening", "warning", "whiten_rewards", told, "GSPO-ADV-10", "", "whiten_rewards: false")


def _masks(every: Mapping[str, Any]) -> Iterator[Finding]:
    """Responses that are masked out count nowhere."""
    masked = {
        "max_len_mask": ("overlong-filter", "truncated responses", "GSPO-AGG-7"),
        "error_max_len_clip": ("overlong-filter", "wrong responses that are too long", "GSPO-AGG-7"),
        "difficulty_mask": (
            "dynamic-sampling",
            "groups that are solved nearly always or nearly never",
            "GSPO-REWARD-6",
        ),
    }
    for key, (rule, what, clause) in masked.items():
        if every[key]:
            yield Finding(rule, "note", key, f"{what} leave the loss and its count", clause)


def _weights(every: Mapping[str, Any]) -> Iterator[Finding]:
    for key in ("difficulty_loss_weight", "length_loss_weight"):
        if every[key]:
            told = f"responses are weighted by their {key.partition('_')[0]}, 1/G in the paper"
            yield Finding("response-weight", "warning", key, told, "GSPO-AGG-2", "", f"{key}: false")
    extras = {"entropy_loss_coef": "an entropy bonus", "postive_loss_coef": "a likelihood term on positive responses"}
    extras["use_topr_neg_loss_coef"] = "a TOPR term on negative responses"
    for key, noun in extras.items():
        if every.get(key):
            yield Finding(
                "extra-term",
                "warning",
                key,
                f"{noun} is added to the loss (coefficient {every[key]:g})",
                "GSPO-SURR-1",
                "",
                f"{key}: 0",
            )
    if every["rl_loss_coef"] != 1:
        yield Finding("loss-scale", "note", "rl_loss_coef", f"the loss is multiplied by {every['rl_loss_coef']:g}")
    if every.get("train_infer_correction.filters"):
        told = (
            "a filter drops tokens from the mask before the ratio is taken: the ratio averages over those that are kept"
        )
        cost = "with loss_agg_mode token-mean the numerator keeps the dropped tokens: the sum is not masked"
        yield Finding("filter", "warning", "train_infer_correction.filters", told, "GSPO-CORR-2", cost)
