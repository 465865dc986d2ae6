"""From rewards per response to advantages: how much better a response is than the others of its prompt.

Advantages are constants: no gradient flows through them (GSPO-DATA-6). Statistics are those of the
responses that are passed together, so gather a group that is spread over micro-batches or ranks
before calling (GSPO-DIST-4): `group_advantages(all_rewards, all_groups)[mine]`.
"""

from __future__ import annotations

from .arrays import Array, compute_dtype, namespace_of
from .backend import backend_of
from .groups import (
    GroupIndex,
    Moments,
    Spread,
    Whole,
    at_least_one,
    divide_by_spread,
    index_groups,
    moments,
    prepare,
    spread_of,
    spread_of_others,
)
from .returns import check_token_rewards, last_counted, return_to_go, whiten_counted
from .sequences import Sequences, bind_sequences
from .validation import check_array, check_choice, check_floating, check_no_nan, check_number, check_same_namespace

CENTERS = ("mean", "leave_one_out", "none")
SCALES = ("std", "batch_std", "leave_one_out_std", "none")
PLACEMENTS = ("std", "variance")


def group_advantages(
    rewards: Array,
    groups: Array,
    *,
    center: str = "mean",
    scale: str = "std",
    ddof: float = 1,
    eps: float = 1e-6,
    eps_placement: str = "std",
    valid: Array | None = None,
) -> Array:
    """A_i = (r_i - mean_g r) / (std_g r + ε), over the responses g of the same prompt: eq. 6.

    Clauses GSPO-ADV-1 to GSPO-ADV-7 and GSPO-ADV-13. A group whose rewards are all equal, a singleton
    among them, gives exactly 0 unless `center` is "none". Too few members for a std (n <= ddof) do
    not divide.

    Args: `rewards` `[n]`; `groups` `[n]` integer ids, in any order; `center` "mean", "leave_one_out"
    (mean of the other members) or "none" (GSPO-ADV-7 is `scale="none"`); `scale` "std",
    "leave_one_out_std" (of the other members), "batch_std" (of all rewards) or "none"; `ddof` taken
    off n in a variance; `eps` added to the std, or under the root for `eps_placement="variance"`;
    `valid` `[n]` members that count: the others may hold anything and get 0.

    >>> import numpy as np
    >>> group_advantages(np.asarray([1.0, 0, 0, 1, 1]), np.asarray([7, 7, 7, -2, -2])).round(3)
    array([ 1.155, -0.577, -0.577,  0.   ,  0.   ])
    """
    rewards, counted = prepare(rewards, groups, valid)
    check_choice("center", center, CENTERS)
    check_choice("scale", scale, SCALES)
    check_choice("eps_placement", eps_placement, PLACEMENTS)
    ddof, eps = check_number("ddof", ddof, low=0.0), check_number("eps", eps, low=0.0)
    index = index_groups(groups)
    rewards, counted = index.sort(rewards), index.sort(counted)
    stats = moments(rewards, counted, index)
    centred = _centred(center, rewards, stats)
    if scale != "none":
        centred = divide_by_spread(centred, _spread(scale, rewards, counted, stats, index, ddof), eps, eps_placement)
    xp = namespace_of(centred)
    kept = counted if center == "none" else counted & (stats.extent > 0)
    return index.restore(xp.where(kept, centred, 0.0))


def leave_one_out_advantages(rewards: Array, groups: Array, *, valid: Array | None = None) -> Array:
    """A_i = r_i - mean_{j in g, j≠i} r_j = n/(n-1) (r_i - mean_g r); 0 for a singleton: RLOO.

    Clause GSPO-ADV-6. Args as in `group_advantages`.

    >>> import numpy as np
    >>> leave_one_out_advantages(np.asarray([1.0, 0, 0, 5]), np.asarray([0, 0, 0, 1]))
    array([ 1. , -0.5, -0.5,  0. ])
    """
    return group_advantages(rewards, groups, center="leave_one_out", scale="none", valid=valid)


def reinforce_pp_advantages(
    token_rewards: Array,
    sequences: Sequences | Array,
    *,
    gamma: float = 1.0,
    groups: Array | None = None,
    ddof: float = 1,
    eps: float = 1e-8,
) -> Array:
    """A_t = whiten(Σ_{u>=t} γ^{u-t} r_u) over all counted tokens of the batch: REINFORCE++.

    Clause GSPO-ADV-11. With `groups`, the baseline variant: the group mean of the responses' total
    rewards is first taken off the reward of each response's last counted token.

    Args: `token_rewards` `[B, T]` or `[N]` (see `token_kl_rewards`); `groups` `[num_sequences]`
    integer ids; `gamma` the discount; `ddof`, `eps` as in `whiten`. Uncounted tokens get 0.

    >>> import numpy as np
    >>> reinforce_pp_advantages(np.asarray([[0.0, 1.0], [0.0, 0.0]]), np.ones((2, 2), bool)).round(3)
    array([[ 0.866,  0.866],
           [-0.866, -0.866]])
    """
    layout, rewards = check_token_rewards("token_rewards", token_rewards, sequences)
    if groups is not None:
        total, everyone = prepare(layout.sum_tokens(rewards), groups, None)
        index = index_groups(groups)
        stats = moments(index.sort(total), index.sort(everyone), index)
        rewards = rewards - last_counted(layout, sequences, index.restore(stats.mean))
    returns = return_to_go(layout, sequences, rewards, gamma)
    return whiten_counted(returns, layout.counted, center=True, ddof=ddof, eps=eps)


def clip_advantages(advantages: Array, bound: float, sequences: Sequences | Array | None = None) -> Array:
    """max(-bound, min(A, bound)).

    Clause GSPO-ADV-12. Args: `advantages` `[num_sequences]`, or per token; with `sequences` uncounted
    tokens may hold anything and get 0.

    >>> import numpy as np
    >>> clip_advantages(np.asarray([-3.0, 0.5, 7.0]), 2.0)
    array([-2. ,  0.5,  2. ])
    """
    xp = check_array("advantages", advantages)
    check_floating("advantages", advantages)
    bound = check_number("bound", bound, low=0.0, strict=True)
    values = backend_of(advantages).stop_gradient(xp.astype(advantages, compute_dtype(advantages)))
    if sequences is not None:
        layout = bind_sequences(sequences, tuple(advantages.shape), "advantages")
        check_same_namespace(xp, advantages=advantages, sequences=layout.counted)
        values = layout.clean(values)
    check_no_nan("advantages", values)
    return xp.clip(values, -bound, bound)


def _centred(center: str, rewards: Array, stats: Moments) -> Array:
    if center == "none":
        return rewards
    if center == "mean":
        return stats.deviation
    return stats.deviation * (stats.count / at_least_one(stats.count - 1))


def _spread(scale: str, rewards: Array, counted: Array, stats: Moments, index: GroupIndex, ddof: float) -> Spread:
    if scale == "std":
        return spread_of(stats, index, ddof)
    if scale == "leave_one_out_std":
        return spread_of_others(rewards, stats, index, counted, ddof)
    batch = Whole()
    return spread_of(moments(rewards, counted, batch), batch, ddof)
