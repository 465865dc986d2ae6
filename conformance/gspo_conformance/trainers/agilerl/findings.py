"""What only the dialect of AgileRL can know: masks, shaping, a clip coefficient that is a pair of ratios, and what drops responses."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..dialect import Finding


def findings(every: Mapping[str, Any], level: str) -> Iterator[Finding]:
    """Each point, worst first."""
    clip, gspo = every["clip_coef"], level == "trajectory"
    if isinstance(clip, Sequence) and max(clip) < 0.5:
        told = (
            f"clip_coef = {tuple(clip)} are bounds of the ratio itself, not distances from 1: every ratio is above them"
        )
        yield Finding("clip-as-distance", "error", "clip_coef", told, "GSPO-SURR-3", fix="clip_coef=(0.9997, 1.0004)")
    bounds, threshold = every["off_policy_token_mask_bounds"], every["off_policy_sequence_mask_threshold"]
    if gspo and bounds is not None:
        told = f"tokens whose own ratio leaves {tuple(bounds)} lose their part of the loss, while the sequence ratio still sends gradient to them"
        cost = "the gradient of a response shrinks by the fraction of its tokens that is kept"
        fix = "off_policy_token_mask_bounds=None"
        yield Finding("token-mask", "warning", "off_policy_token_mask_bounds", told, "GSPO-DATA-1", cost, fix)
    if gspo and threshold is not None:
        told = f"responses with a negative advantage and a ratio below {math.exp(-threshold):.3f} are dropped"
        cost = "inside a clip range that reaches further down they lose the gradient that the paper keeps"
        fix = "off_policy_sequence_mask_threshold=None"
        yield Finding("sequence-mask", "warning", "off_policy_sequence_mask_threshold", told, "GSPO-CORR-6", cost, fix)
    if every["beta"] and not every["use_kl_advantage_shaping"] and (bounds, threshold) != (None, None):
        told = "tokens and responses that the masks against drift drop lose their KL term as well"
        key = "off_policy_token_mask_bounds" if threshold is None else "off_policy_sequence_mask_threshold"
        yield Finding("masked-penalty", "note", key, told, "GSPO-CORR-4")
    if every["use_kl_advantage_shaping"]:
        told = "the KL divergence enters the advantages, token by token"
        fix = "use_kl_advantage_shaping=False"
        yield Finding("kl-in-advantage", "warning", "use_kl_advantage_shaping", told, "GSPO-KL-6", fix=fix)
    if every["adv_clip_range"] is not None:
        told = f"advantages are clipped at {every['adv_clip_range']:g}"
        yield Finding("advantage-clip", "warning", "adv_clip_range", told, "GSPO-ADV-12", fix="adv_clip_range=None")
    if every["filter_zero_adv"]:
        told = "responses with an advantage of 0 leave the batch and the divisor"
        yield Finding("zero-filter", "note", "filter_zero_adv", told, "GSPO-AGG-7")
