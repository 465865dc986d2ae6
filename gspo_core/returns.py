"""Advantages per token: return-to-go, generalised advantage estimation, whitening.

Time advances on counted tokens only: a tool's output between two turns neither discounts nor takes
part (GSPO-ADV-8, GSPO-ADV-9). Every token of a sequence must be here: gather first where a sequence,
or for `whiten` the batch, is spread over ranks.
"""

from __future__ import annotations

from typing import NamedTuple

from .arrays import Array, compute_dtype, namespace_of
from .backend import backend_of, device_of
from .groups import Whole, divide_by_spread, longest_segment, moments, spread_of
from .scan import State, affine, segmented_scan
from .sequences import Layout, Packed, Sequences, bind_sequences
from .validation import (
    check_array,
    check_finite,
    check_flag,
    check_floating,
    check_number,
    check_same_namespace,
    check_shape,
)


class GaeResult(NamedTuple):
    """Advantages A and returns A + V, both in the shape of the tokens."""

    advantages: Array
    returns: Array


def gae_advantages(
    rewards: Array,
    values: Array,
    sequences: Sequences | Array,
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
    bootstrap: Array | None = None,
) -> GaeResult:
    """A_t = δ_t + γλ A_{t+1}, δ_t = r_t + γ V_{t+1} - V_t, t+1 the next *counted* token: GAE.

    Clause GSPO-ADV-9. Returns `(advantages, returns)`, returns = A + V, both 0 at uncounted tokens.

    Args: `rewards`, `values` `[B, T]` or `[N]`; `bootstrap` `[num_sequences]` the value after the
    last counted token (0 where None); `gamma`, `lam` in [0, 1].

    >>> import numpy as np
    >>> mask = np.asarray([[True, False, True]])
    >>> gae_advantages(np.asarray([[0.0, 9.0, 1.0]]), np.asarray([[0.5, 9.0, 0.5]]), mask, lam=0.5).advantages
    array([[0.25, 0.  , 0.5 ]])
    """
    layout, rewards = check_token_rewards("rewards", rewards, sequences)
    values = _tokens("values", values, layout)
    discount, decay = _fraction("gamma", gamma), _fraction("lam", lam)
    end = _bootstrap(bootstrap, layout, rewards)
    dtype = compute_dtype(rewards, values, end)
    rewards, values, end = (layout.xp.astype(array, dtype) for array in (rewards, values, end))
    delta = layout.clean(rewards + discount * _next_value(layout, sequences, values, end) - values)
    advantages = _recur(layout, sequences, delta, discount * decay)[1]
    return GaeResult(layout.clean(advantages), layout.clean(advantages + values))


def reinforce_returns(rewards: Array, sequences: Sequences | Array, *, gamma: float = 1.0) -> Array:
    """R_t = Σ_{u>=t} γ^{k(u)-k(t)} r_u over counted tokens, k counting counted tokens: return-to-go.

    Clause GSPO-ADV-8. Args: `rewards` `[B, T]` or `[N]`; `gamma` in [0, 1]. Uncounted tokens get 0.

    >>> import numpy as np
    >>> reinforce_returns(np.asarray([[1.0, 9.0, 4.0]]), np.asarray([[True, False, True]]), gamma=0.5)
    array([[3., 0., 4.]])
    """
    layout, rewards = check_token_rewards("rewards", rewards, sequences)
    return return_to_go(layout, sequences, rewards, gamma)


def whiten(
    values: Array,
    sequences: Sequences | Array | None = None,
    *,
    center: bool = True,
    ddof: float = 1,
    eps: float = 1e-8,
) -> Array:
    """(x - μ) / √(σ² + ε) over all counted entries, + μ where not `center`.

    Clause GSPO-ADV-10. Equal entries, and fewer than two, give exactly 0, or themselves where not `center`.

    Args: `values` of any shape, or `[B, T]` or `[N]` with `sequences`, and then uncounted tokens
    may hold anything and get 0; `ddof` taken off the number of entries in σ².

    >>> import numpy as np
    >>> whiten(np.asarray([1.0, 2.0, 3.0])).round(6)
    array([-1.,  0.,  1.])
    """
    xp = check_array("values", values)
    check_floating("values", values)
    if sequences is None:
        if 0 in values.shape:
            raise ValueError(f"values: expected at least one entry, got shape {tuple(values.shape)}")
        counted = xp.ones_like(values, dtype=xp.bool)
    else:
        counted = _whole_layout("values", values, sequences).counted
    check_finite("values", values, counted)
    return whiten_counted(_constant(values), counted, center=center, ddof=ddof, eps=eps)


def whiten_counted(values: Array, counted: Array, *, center: bool, ddof: float, eps: float) -> Array:
    """`whiten` for checked values."""
    ddof, eps = check_number("ddof", ddof, low=0.0), check_number("eps", eps, low=0.0)
    check_flag("center", center)
    xp, batch = namespace_of(values), Whole()
    stats = moments(values, counted, batch)
    white = divide_by_spread(stats.deviation, spread_of(stats, batch, ddof), eps, "variance")
    white = white if center else white + stats.mean
    return xp.where(counted, white, 0.0)


def return_to_go(layout: Layout, sequences: Sequences | Array, rewards: Array, gamma: float) -> Array:
    """`reinforce_returns` for checked rewards, 0 at uncounted tokens."""
    return layout.clean(_recur(layout, sequences, rewards, _fraction("gamma", gamma))[1])


def last_counted(layout: Layout, sequences: Sequences | Array, per_sequence: Array) -> Array:
    """v_i at the last counted token of sequence i, 0 at every other."""
    xp = layout.xp
    counted = xp.astype(layout.counted, per_sequence.dtype)
    later = _shifted(layout, sequences, _recur(layout, sequences, counted, 0.0)[1], xp.zeros_like(per_sequence))
    spread = layout.spread(per_sequence)
    return xp.where(layout.counted & (later == 0), spread, 0.0)


def check_token_rewards(name: str, rewards: Array, sequences: Sequences | Array) -> tuple[Layout, Array]:
    """The bound sequences, and checked rewards per token as constants, 0 at uncounted tokens."""
    check_array(name, rewards)
    layout = _whole_layout(name, rewards, sequences)
    return layout, _tokens(name, rewards, layout)


def _whole_layout(name: str, values: Array, sequences: Sequences | Array) -> Layout:
    layout = bind_sequences(sequences, tuple(values.shape), name)
    check_same_namespace(namespace_of(values), **{name: values}, sequences=layout.counted)
    if layout.context is not None:
        raise ValueError("sequences: expected whole sequences (context=None), got a group of ranks: gather first")
    return layout


def _tokens(name: str, values: Array, layout: Layout) -> Array:
    check_same_namespace(layout.xp, sequences=layout.counted, **{name: values})
    check_floating(name, values)
    check_shape(name, values, layout.token_shape, "the shape of the tokens")
    check_finite(name, values, layout.counted)
    return layout.clean(_constant(values))


def _constant(values: Array) -> Array:
    xp = namespace_of(values)
    return backend_of(values).stop_gradient(xp.astype(values, compute_dtype(values)))


def _bootstrap(bootstrap: Array | None, layout: Layout, like: Array) -> Array:
    if bootstrap is None:
        return layout.lengths(like.dtype) * 0
    check_same_namespace(layout.xp, sequences=layout.counted, bootstrap=bootstrap)
    check_floating("bootstrap", bootstrap)
    check_shape("bootstrap", bootstrap, (layout.num_sequences,), "one value per sequence")
    check_finite("bootstrap", bootstrap)
    return _constant(bootstrap)


def _fraction(name: str, value: float) -> float:
    value = check_number(name, value, low=0.0)
    if value > 1:
        raise ValueError(f"{name}: expected a number <= 1, got {value!r}")
    return value


def _behind(layout: Layout, sequences: Sequences | Array) -> Array:
    """The number of tokens behind each one in its sequence, counted or not; below 0 outside of any."""
    xp, length = layout.xp, layout.token_shape[-1]
    if isinstance(sequences, Packed):
        offsets = sequences.offsets
        place = xp.arange(length, dtype=offsets.dtype, device=device_of(offsets))
        return layout.spread(offsets[1:]) - 1 - place
    back = xp.arange(length - 1, -1, -1, device=device_of(layout.counted))
    return xp.broadcast_to(back[None, :], layout.token_shape)


def _recur(layout: Layout, sequences: Sequences | Array, values: Array, factor: float) -> State:
    """(G, y) with y_t = x_t + g_t y_{t+1} and G the product of g to the end; g is 1 at uncounted tokens."""
    xp, behind = layout.xp, _behind(layout, sequences)
    bound = layout.token_shape[-1]
    if isinstance(sequences, Packed) and sequences.max_length is not None:
        bound = min(bound, sequences.max_length)
    growth = xp.where(layout.counted, xp.zeros_like(values) + factor, 1.0)
    longest = longest_segment(behind, bound) if bound else 0
    return segmented_scan(affine, (growth, values), behind, longest, backward=True)


def _shifted(layout: Layout, sequences: Sequences | Array, values: Array, end: Array) -> Array:
    """v_{t+1}, and `end` `[num_sequences]` at the last token of a sequence."""
    following = layout.xp.roll(values, -1, axis=-1)
    return layout.xp.where(_behind(layout, sequences) > 0, following, layout.spread(end))


def _next_value(layout: Layout, sequences: Sequences | Array, values: Array, end: Array) -> Array:
    """V of the next counted token, and `end` behind the last."""
    passed, found = _recur(layout, sequences, values, 0.0)
    return _shifted(layout, sequences, found + passed * layout.spread(end), end)
