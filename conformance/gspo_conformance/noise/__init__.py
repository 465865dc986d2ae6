"""Learning or noise: what two scoring passes that disagree do to GSPO's ratio, without any change of the policy.

    Mismatch(std=0.05, bias=-0.0015)            d = b + ω z + σ x, x autocorrelated with φ: the model
    clip_probabilities(mismatch, clip, 4096)    P(s < 1-ε_low), P(s > 1+ε_high)

`simulation` measures the model; `forecast` puts it in words. `responses` reads a trace, `estimate` finds bias
and spread with standard errors, `analysis` compares what was clipped with what was predicted, and
`findings(trace)` in `findings` and `health` says what all this does to the run.
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
