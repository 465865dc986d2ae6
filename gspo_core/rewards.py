"""What happens to rewards before they become advantages; GSPO itself does none of it.

Where several apply, the order is dynamic sampling, overlong penalty, clip, normalisation, token KL
(GSPO-REWARD-7); each is a function of its own that takes what the one before returns. Rewards carry
no gradient (GSPO-DATA-6).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .arrays import Array, compute_dtype, namespace_of
from .backend import backend_of
from .groups import Spread, Whole, check_rewards, divide_by_spread, index_groups, moments, prepare, spread_of
from .penalty import ESTIMATORS, kl_penalty
from .returns import check_token_rewards, last_counted
from .sequences import Sequences
from .validation import (
    check_array,
    check_choice,
    check_finite,
    check_flag,
    check_floating,
    check_kind,
    check_no_nan,
    check_not_negative,
    check_number,
    check_same_namespace,
    check_shape,
)

METHODS = (None, "batch", "group", "running")


def clip_rewards(rewards: Array, low: float, high: float) -> Array:
    """max(low, min(r, high)).

    Clause GSPO-REWARD-1. Args: `rewards` `[n]`; infinite rewards are clipped, NaN is an error.

    >>> import numpy as np
    >>> clip_rewards(np.asarray([-20.0, 0.3, 20.0]), -10.0, 10.0)
    array([-10. ,   0.3,  10. ])
    """
    xp = check_rewards(rewards)
    low = check_number("low", low)
    high = check_number("high", high, low=low)
    check_no_nan("rewards", rewards)
    return xp.clip(backend_of(rewards).stop_gradient(xp.astype(rewards, compute_dtype(rewards))), low, high)


class RunningMoments(NamedTuple):
    """n, the mean and Σ(r - mean)² of all rewards so far. Immutable: `update` returns the next.

    Clause GSPO-REWARD-3. Starts empty and takes the framework and dtype of the first rewards. A checkpoint holds
    three numbers: `RunningMoments(count, float(mean), float(m2))` goes on where they were written.

    >>> import numpy as np
    >>> running = RunningMoments().update(np.asarray([1.0, 2.0])).update(np.asarray([6.0]))
    >>> running.count, float(running.mean), float(running.m2)
    (3, 3.0, 14.0)
    """

    count: Any = 0
    mean: Any = 0.0
    m2: Any = 0.0

    def update(self, rewards: Array) -> RunningMoments:
        """The moments of what came before together with `rewards` `[n]`."""
        rewards, everyone = prepare(rewards, None, None)
        _check_moments(self, rewards)
        batch = moments(rewards, everyone, Whole())
        squares = namespace_of(rewards).sum(batch.deviation * batch.deviation)
        count = self.count + rewards.shape[0]
        step, zero = batch.mean - self.mean, batch.mean * 0
        share = batch.count / (zero + count)
        mean = self.mean + step * share
        return RunningMoments(count, mean, self.m2 + squares + step * step * (zero + self.count) * share)

    def spread(self, ddof: float = 1) -> Spread:
        """√(m2 / (n - ddof)), and n - ddof."""
        xp = namespace_of(self.m2)
        freedom = self.m2 * 0 + (self.count - ddof)
        return Spread(xp.sqrt(self.m2 / xp.where(freedom > 0, freedom, 1.0)), freedom)


def normalize_rewards(
    rewards: Array,
    *,
    method: str | None = "batch",
    groups: Array | None = None,
    shift: bool = True,
    scale: bool = True,
    ddof: float = 1,
    eps: float = 1e-6,
    running: RunningMoments | None = None,
) -> Array:
    """r - mean (shift), r / (std + ε) (scale), or (r - mean) / (std + ε) (both).

    Clauses GSPO-REWARD-2 and GSPO-REWARD-3. Equal rewards shift to exactly 0; too few for a std (n <= ddof) are
    not divided.

    Args: `rewards` `[n]`; `method` says whose statistics: "batch", "group" (with `groups` `[n]`),
    "running" (with `running`, which must already contain these rewards), or None for none at all.

    >>> import numpy as np
    >>> normalize_rewards(np.asarray([1.0, 2.0, 3.0]), scale=False)
    array([-1.,  0.,  1.])
    >>> rewards = np.asarray([0.0, 4.0])
    >>> running = RunningMoments().update(np.asarray([2.0])).update(rewards)
    >>> normalize_rewards(rewards, method="running", running=running).round(3)
    array([-1.,  1.])
    """
    check_choice("method", method, METHODS)
    ddof, eps = check_number("ddof", ddof, low=0.0), check_number("eps", eps, low=0.0)
    check_flag("shift", shift)
    check_flag("scale", scale)
    _check_statistics(method, groups, running)
    rewards, everyone = prepare(rewards, groups, None)
    if method is None:
        return rewards
    if method == "running":
        assert running is not None
        running = _beside(running, rewards)
        return _normalized(rewards, rewards - running.mean, running.spread(ddof), shift, scale, eps)
    over = Whole() if method == "batch" else index_groups(groups)
    rewards = over.sort(rewards)
    stats = moments(rewards, everyone, over)
    return over.restore(_normalized(rewards, stats.deviation, spread_of(stats, over, ddof), shift, scale, eps))


def token_kl_rewards(
    rewards: Array,
    logp: Array,
    ref_logp: Array,
    sequences: Sequences | Array,
    *,
    coefficient: float,
    estimator: str = "k1",
) -> Array:
    """r_t = r_i [t is the last counted token of i] - β KL_t on counted tokens, 0 elsewhere.

    Clause GSPO-REWARD-4. In the reward k1 is the unbiased choice (GSPO-KL-1). An empty sequence has
    no token to hold its reward.

    Args: `rewards` `[num_sequences]`; `logp`, `ref_logp` `[B, T]` or `[N]`; `coefficient` β.

    >>> import numpy as np
    >>> logp, ref_logp = np.asarray([[-1.0, -1.0, 5.0]]), np.asarray([[-3.0, -1.0, 5.0]])
    >>> token_kl_rewards(np.asarray([1.0]), logp, ref_logp, np.asarray([[1, 1, 0]]), coefficient=0.5)
    array([[-1.,  1.,  0.]])
    """
    xp = check_rewards(rewards)
    coefficient = check_number("coefficient", coefficient, low=0.0)
    check_choice("estimator", estimator, ESTIMATORS)
    check_same_namespace(xp, rewards=rewards, logp=logp, ref_logp=ref_logp)
    layout, logp = check_token_rewards("logp", logp, sequences)
    check_shape("ref_logp", ref_logp, layout.token_shape, "like logp")
    _, ref_logp = check_token_rewards("ref_logp", ref_logp, sequences)
    check_shape("rewards", rewards, (layout.num_sequences,), "one reward per sequence")
    held = layout.lengths(xp.float32) > 0
    check_finite("rewards", rewards, held)
    dtype = compute_dtype(rewards, logp, ref_logp)
    rewards, logp, ref_logp = (xp.astype(array, dtype) for array in (rewards, logp, ref_logp))
    rewards = backend_of(rewards).stop_gradient(xp.where(held, rewards, 0.0))
    last = last_counted(layout, sequences, rewards)
    # Without a coefficient nothing is subtracted, whatever overflowed in the KL.
    return layout.clean(last - coefficient * kl_penalty(logp, ref_logp, estimator) if coefficient else last)


def soft_overlong_penalty(lengths: Array, max_length: int, cache: int) -> Array:
    """0 for |y| <= L - C, (L - C - |y|)/C up to L, -1 beyond: DAPO's penalty, to be added to the reward.

    Clause GSPO-REWARD-5. Args: `lengths` `[n]` counted tokens; `max_length` L; `cache` C, 0 < C <= L.

    >>> import numpy as np
    >>> soft_overlong_penalty(np.asarray([10, 90, 95, 100, 200]), 100, 10)
    array([ 0. ,  0. , -0.5, -1. , -1. ], dtype=float32)
    """
    xp = check_array("lengths", lengths)
    if lengths.ndim != 1 or lengths.shape[0] == 0:
        raise ValueError(f"lengths: expected shape [n] with at least one response, got {tuple(lengths.shape)}")
    if not xp.isdtype(lengths.dtype, "integral"):
        check_floating("lengths", lengths)
    span = check_number("cache", cache, low=0.0, strict=True)
    end = check_number("max_length", max_length, low=span)
    floats = xp.astype(lengths, compute_dtype(lengths))
    check_finite("lengths", floats)
    check_not_negative("lengths", floats)
    return xp.clip((end - span - floats) / span, -1.0, 0.0)


def _check_statistics(method: str | None, groups: Array | None, running: RunningMoments | None) -> None:
    for name, needed, value in (("groups", method == "group", groups), ("running", method == "running", running)):
        if needed and value is None:
            raise ValueError(f"{name}: expected with method={method!r}, got None")
        if value is not None and not needed:
            raise ValueError(f"{name}: expected None with method={method!r}, got {type(value).__name__}")
    if running is None:
        return
    count = check_kind("running", running, RunningMoments).count
    if isinstance(count, int) and count == 0:
        raise ValueError("running: expected moments that contain these rewards, got empty ones: update first")


def _check_moments(running: RunningMoments, rewards: Array) -> None:
    """Moments are numbers, or arrays like `rewards` without a dimension; the first and the last of them at least 0."""
    if not hasattr(running.count, "dtype"):
        check_number("count", running.count, low=0.0)
    for name, value, low in (("mean", running.mean, None), ("m2", running.m2, 0.0)):
        if not hasattr(value, "dtype"):
            check_number(name, value, low=low)
            continue
        check_same_namespace(namespace_of(rewards), rewards=rewards, **{name: value})
        check_shape(name, value, (), "one number")
        check_finite(name, value)
        if low is not None:
            check_not_negative(name, value)


def _beside(running: RunningMoments, rewards: Array) -> RunningMoments:
    """The moments as arrays of the framework of `rewards`."""
    _check_moments(running, rewards)
    zero = namespace_of(rewards).sum(rewards * 0)
    mean, m2 = (value if hasattr(value, "dtype") else zero + value for value in (running.mean, running.m2))
    return RunningMoments(running.count, mean, m2)


def _normalized(rewards: Array, deviation: Array, spread: Spread, shift: bool, scale: bool, eps: float) -> Array:
    centred = deviation if shift else rewards
    return divide_by_spread(centred, spread, eps) if scale else centred
