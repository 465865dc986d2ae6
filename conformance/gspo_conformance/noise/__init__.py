"""Learning or noise: what two scoring passes that disagree do to GSPO's ratio, without any change of the policy.

Mismatch(std=0.05, bias=-0.0015)            d = b + ω z + σ x, x autocorrelated with φ: the model
clip_probabilities(mismatch, clip, 4096)    P(s < 1-ε_low), P(s > 1+ε_high)
read_responses(trace), estimate(...)        bias and spread of a real run, with standard errors
findings(trace)                             what mismatch, lengths, groups and precision do to it
"""

from .model import (
    Mismatch,
    clip_fraction,
    clip_probabilities,
    effective_share,
    length_outside,
    mean_ratio,
    required_clip,
)
from .precision import quantisation_std, stored_dtype

__all__ = [
    "Mismatch",
    "clip_fraction",
    "clip_probabilities",
    "effective_share",
    "length_outside",
    "mean_ratio",
    "quantisation_std",
    "required_clip",
    "stored_dtype",
]
