"""The functions that Trinity-RFT registers, and the arguments that each has where none, or only some, are given."""

from __future__ import annotations

from typing import Any

ALGORITHMS: dict[str, dict[str, str]] = {
    kind: {"policy_loss_fn": loss, "advantage_fn": advantage, "kl_loss_fn": kl, "kl_penalty_fn": "none"}
    for kind, loss, advantage, kl in (
        ("ppo", "ppo", "ppo", "k2"),
        ("grpo", "ppo", "grpo", "k2"),
        ("grpo_verl", "ppo", "grpo", "k2"),
        ("dapo", "ppo", "grpo", "none"),
        ("gspo", "gspo", "grpo", "k2"),
        ("cispo", "cispo", "grpo", "k2"),
        ("sapo", "sapo", "grpo", "k2"),
        ("opmd", "opmd", "opmd", "k2"),
        ("asymre", "opmd", "asymre", "none"),
        ("rec", "rec", "rec", "k2"),
        ("rloo", "ppo", "rloo", "k2"),
        ("reinforceplusplus", "ppo", "reinforceplusplus", "k2"),
        ("multi_step_grpo", "ppo", "step_wise_grpo", "k2"),
        ("gigpo", "ppo", "gigpo", "k2"),
        ("on_policy_distill", "ppo", "on_policy_distill", "none"),
        ("jsd", "ppo", "jsd", "none"),
    )
}
IN_TRAINER = ("ppo", "rloo", "reinforceplusplus", "grpo_verl", "on_policy_distill", "jsd")
_MODE = {"loss_agg_mode": "token-mean"}
_RANGE: dict[str, Any] = {"clip_range": None, "clip_range_low": None, "clip_range_high": None}
_PPO = {
    "clip_ratio_c": 3.0,
    "enable_sequence_masking": False,
    "delta_sequence_masking": 0.1,
    "fallback_to_policy_gradient": False,
}
_CISPO = {"clip_range_low": 1.0, "clip_range_high": 0.28, "enable_mask_clip": False}
_REC = {
    "epsilon_low": 0.2,
    "epsilon_high": 0.2,
    "clip_mode": "none",
    "weight": "none",
    "regularizer": "none",
    "regularizer_coef": 0.0,
}
_PAPER = {"clip_range_low": 3e-4, "clip_range_high": 4e-4, "loss_agg_mode": "seq-mean-token-mean"}
# What the constructors have where an argument is not given, and what all are where none is given.
UNSET: dict[str, dict[str, Any]] = {
    "ppo": _MODE | _RANGE | _PPO,
    "gspo": _RANGE | {"loss_agg_mode": "seq-mean-token-mean"},
    "cispo": _MODE | _CISPO,
    "sapo": _MODE | {"tau_pos": 1.0, "tau_neg": 1.05},
    "importance_sampling": _MODE,
    "opmd": _MODE | {"tau": 1.0},
    "rec": _REC,
    "grpo": {"epsilon": 1e-6, "std_threshold": None, "rank_penalty": None, "std_cal_level": "group"},
}
LOSSES: dict[str, dict[str, Any]] = {
    name: arguments | {"ppo": {"clip_range": 0.2}, "gspo": _PAPER}.get(name, {})
    for name, arguments in UNSET.items()
    if name != "grpo"
}
MODES = {
    "token-mean": "token_mean",
    "seq-mean-token-mean": "sequence_mean_token_mean",
    "seq-mean-token-sum": "sequence_mean_token_sum",
}
KINDS: dict[str, tuple[str, float | None, float | None]] = {
    "k1": ("k1", None, None),
    "k2": ("k2", None, None),
    "k3": ("k3", None, None),
    "abs": ("abs", None, None),
    "low_var_kl": ("k3", 20.0, 10.0),
    "corrected_k3": ("k3", None, None),
}
# Arguments of the advantages of `rec`, `opmd` and `asymre`.
CHANGES: dict[str, Any] = {"std_normalize": False, "opmd_baseline": "mean", "baseline_shift": -0.1}
ADVANTAGES: dict[str, dict[str, Any]] = {
    "grpo": {"center": "mean", "scale": "std", "ddof": 1},
    "step_wise_grpo": {"center": "mean", "scale": "std", "ddof": 1},
    "opmd": {"center": "mean", "scale": "none"},
    "asymre": {"center": "mean", "scale": "none"},
    "rec": {"center": "mean", "scale": "none"},
    "rloo": {"center": "leave_one_out", "scale": "none"},
    "reinforce": {"center": "none", "scale": "none"},
}
