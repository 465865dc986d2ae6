"""The importance ratio of the current policy to the old one: per token, per sequence, or both at once.

Log-probabilities are subtracted before anything is summed: the difference of two sums of T terms
loses what the mean of T differences keeps (GSPO-RATIO-5).
"""

from __future__ import annotations

from .arrays import Array, compute_dtype
from .sequences import Layout, Sequences, bind_sequences
from .validation import check_array, check_finite, check_floating, check_same_namespace, check_shape


def _bind(logp: Array, old_logp: Array, sequences: Sequences | Array) -> tuple[Layout, Array, Array]:
    xp = check_array("logp", logp)
    layout = bind_sequences(sequences, tuple(logp.shape))
    check_same_namespace(xp, logp=logp, old_logp=old_logp, sequences=layout.counted)
    for name, values in (("logp", logp), ("old_logp", old_logp)):
        check_floating(name, values)
        check_shape(name, values, layout.token_shape, "like logp")
        check_finite(name, values, layout.counted)
    dtype = compute_dtype(logp, old_logp)
    return layout, layout.clean(xp.astype(logp, dtype)), layout.clean(xp.astype(old_logp, dtype))


def token_log_ratio(logp: Array, old_logp: Array, sequences: Sequences | Array) -> Array:
    """d_{i,t} = log π_θ(y_{i,t}) - log π_old(y_{i,t}) at counted tokens, 0 elsewhere.

    Clause GSPO-RATIO-1. Args: `logp`, `old_logp` `[B, T]` or `[N]`. Returns the shape of `logp`.
    """
    _, new, old = _bind(logp, old_logp, sequences)
    return new - old


def sequence_log_ratio(logp: Array, old_logp: Array, sequences: Sequences | Array) -> Array:
    """log s_i = (1/|y_i|) Σ_t d_{i,t} over the counted tokens, 0 for an empty sequence.

    Clauses GSPO-RATIO-2, GSPO-RATIO-4. Returns `[num_sequences]`.
    """
    layout, new, old = _bind(logp, old_logp, sequences)
    return layout.mean_tokens(new - old)


def token_ratio(logp: Array, old_logp: Array, sequences: Sequences | Array) -> Array:
    """w_{i,t} = π_θ(y_{i,t}) / π_old(y_{i,t}) at counted tokens, 1 elsewhere. Clause GSPO-RATIO-1, eq. 3."""
    layout, new, old = _bind(logp, old_logp, sequences)
    return layout.xp.exp(new - old)


def sequence_ratio(logp: Array, old_logp: Array, sequences: Sequences | Array) -> Array:
    """s_i = (π_θ(y_i) / π_old(y_i))^{1/|y_i|} = exp((1/|y_i|) Σ_t d_{i,t}). Clause GSPO-RATIO-2, eq. 7.

    >>> import numpy as np
    >>> logp, old = np.log([[0.5, 0.4]]), np.log([[0.25, 0.8]])
    >>> sequence_ratio(logp, old, np.asarray([[True, True]]))
    array([1.])
    """
    layout, new, old = _bind(logp, old_logp, sequences)
    return layout.xp.exp(layout.mean_tokens(new - old))


def gspo_token_ratio(logp: Array, old_logp: Array, sequences: Sequences | Array) -> Array:
    """s_{i,t} = sg[s_i] · π_θ(y_{i,t}) / sg[π_θ(y_{i,t})]. Clause GSPO-RATIO-3, eq. 14.

    Numerically s_i at every counted token and 1 elsewhere; the derivative is that of the token alone.
    """
    layout, new, old = _bind(logp, old_logp, sequences)
    log_ratio = gspo_token_log_ratio(layout, new, old)
    return layout.xp.exp(layout.clean(log_ratio))


def gspo_token_log_ratio(layout: Layout, new: Array, old: Array) -> Array:
    """sg[log s_i] + (log π_θ(y_{i,t}) - sg[log π_θ(y_{i,t})]): the bracket is exactly 0."""
    stop = layout.backend.stop_gradient
    frozen = stop(new)
    return layout.spread(layout.mean_tokens(frozen - stop(old))) + (new - frozen)
