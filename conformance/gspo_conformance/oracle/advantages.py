"""Advantages per response from rewards: the statistics of the group, of the others in it, or of the batch."""

from collections.abc import Sequence
from typing import Any

from mpmath import mpf

from .exact import exact
from .layout import layout_of
from .moments import Moments, Spread, divided, members, moments
from .ratio import mean
from .terms import NOTHING, Outputs, Term, held, laid, mapped, one_each, one_of

Numbers = Sequence[Any]

CENTERS = ("mean", "leave_one_out", "none")
SCALES = ("std", "batch_std", "leave_one_out_std", "none")
PLACEMENTS = ("std", "variance")


def group_advantages(
    rewards: Numbers,
    groups: Numbers,
    *,
    center: str = "mean",
    scale: str = "std",
    ddof: Any = 1,
    eps: Any = 1e-6,
    eps_placement: str = "std",
    valid: Numbers | None = None,
) -> Outputs:
    """A_i = (r_i - mean_g) / (std_g + eps), eq. 6, and its relatives (GSPO-ADV-1 to -7, GSPO-ADV-13)."""
    one_of("center", center, CENTERS)
    one_of("scale", scale, SCALES)
    one_of("eps_placement", eps_placement, PLACEMENTS)
    one_each("groups", groups, rewards)
    values = counted_rewards(rewards, valid)
    batch = moments(list(values.values())).spread(exact(ddof))
    terms = [NOTHING] * len(rewards)
    for indices in members(list(groups)):
        inside = {index: values[index] for index in indices if index in values}
        group = moments(list(inside.values()))
        for index, value in inside.items():
            term = _centred(center, group, value)
            if scale != "none":
                others = [other for member, other in inside.items() if member != index]
                spread = batch if scale == "batch_std" else _spread(scale, group, others, exact(ddof))
                term = divided(term, spread, exact(eps), eps_placement)
            terms[index] = term
    return {"advantages": laid(terms)}


def counted_rewards(rewards: Numbers, valid: Numbers | None) -> dict[int, mpf]:
    """The rewards that enter statistics, by index; what an invalid member holds is never read (GSPO-ADV-5)."""
    flags = [True] * len(rewards) if valid is None else valid
    one_each("valid", flags, rewards)
    return {index: exact(rewards[index]) for index, flag in enumerate(flags) if flag}


def _centred(center: str, group: Moments, value: mpf) -> Term:
    """r - mean, n/(n-1) (r - mean) or r; the former exactly 0 in a group of equals (GSPO-ADV-3, -4, -6, -7)."""
    if center == "none":
        return value, mpf(0)
    gain = mpf(group.count) / (group.count - 1) if center == "leave_one_out" and group.count > 1 else mpf(1)
    deviation, size = group.centred(value)
    return gain * deviation, gain * size


def _spread(scale: str, group: Moments, others: list[mpf], ddof: mpf) -> Spread:
    """The standard deviation of the other members, or of the group (GSPO-ADV-6, GSPO-ADV-1).

    That of the others may be taken from deviations about the mean of the group, each of which errs by u of its size.
    """
    if scale != "leave_one_out_std":
        return group.spread(ddof)
    found, deviations = moments(others).spread(ddof), [abs(other - group.mean) for other in others]
    return Spread(found.deviation, found.missed + mean(deviations))


def leave_one_out_advantages(rewards: Numbers, groups: Numbers, *, valid: Numbers | None = None) -> Outputs:
    """A_i = r_i - mean of the other members (GSPO-ADV-6)."""
    return group_advantages(rewards, groups, center="leave_one_out", scale="none", valid=valid)


def clip_advantages(advantages: Any, bound: Any, *, mask: Any = None, offsets: Any = None) -> Outputs:
    """max(-b, min(A, b)) (GSPO-ADV-12); 0 at uncounted tokens."""
    limit = exact(bound)
    if limit <= 0:
        raise ValueError(f"bound: expected a positive number, got {bound}")
    if mask is None and offsets is None:
        return {"advantages": laid(mapped(lambda value: held(value, -limit, limit), advantages))}
    layout = layout_of(advantages, mask=mask, offsets=offsets)
    rows = [[held(value, -limit, limit) for value in row] for row in layout.gather(advantages)]
    return {"advantages": laid(layout.scatter(rows, NOTHING))}
