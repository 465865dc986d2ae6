"""ROLL's other pipeline, for agents: `ratio_type` is its ratio and `reward_normalization` its baseline; `importance_sampling` is not read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..dialect import Finding

NORM = "reward_normalization."
DEFAULTS: dict[str, Any] = {"ratio_type": "token", f"{NORM}grouping": "batch", f"{NORM}method": "identity"}
ONLY_HERE = ("custom_envs.", "env_manager_config.", "train_env_manager.", NORM)
GROUPED = f"{NORM}grouping: traj_group_id, {NORM}method: mean_std"
GROUPS = ("traj_group_id", "group")


def is_agentic(settings: Mapping[str, Any]) -> bool:
    """Whether the keys are of the pipeline for agents."""
    return "ratio_type" in settings or any(key.startswith(ONLY_HERE) for key in settings)


def ratio(every: Mapping[str, Any]) -> str:
    """One per segment, which is a response, or a turn of one; else one per token."""
    return "sequence" if every["ratio_type"] == "segment" else "token"


def norm(every: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Over what the mean and the standard deviation are taken."""
    method, over = every[f"{NORM}method"], "group" if every[f"{NORM}grouping"] in GROUPS else "batch"
    return over if method != "identity" else None, over if method in ("mean_std", "asym_clip") else None


def findings(every: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Finding]:
    """The key that switches here, and the one that does not."""
    segment = every["ratio_type"] == "segment"
    if segment:
        told = "the ratio is one for every unbroken run of the policy's tokens: of a dialogue every turn has its own"
        yield Finding("segment-ratio", "note", "ratio_type", told, "GSPO-DATA-4")
    if "importance_sampling" in settings:
        told = "importance_sampling is not read by the pipeline for agents: its ratio is that of ratio_type"
        severity = "warning" if segment else "error"
        yield Finding("key-ignored", severity, "importance_sampling", told, "GSPO-RATIO-2", fix="ratio_type: segment")
