"""What only the dialect of mlx-lm-lora can know: what samples is not what is scored, one response a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..dialect import Finding

PLAIN = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}


def findings(every: Mapping[str, Any]) -> Iterator[Finding]:
    """Each point, worst first."""
    if every["group_size"] == 1:
        told = "one response a prompt: the mean of the group is the reward itself, every advantage is 0"
        yield Finding("group-size", "error", "group_size", told, "GSPO-ADV-4", fix="--group-size 8")
    filters = [f"{key} {every[key]:g}" for key, plain in PLAIN.items() if every[key] not in (None, plain)]
    if filters:
        told = f"responses are sampled with {', '.join(filters)} and scored without: what samples is not the policy that learns"
        yield Finding("sampler-filter", "note", filters[0].partition(" ")[0], told, "GSPO-DATA-5")
