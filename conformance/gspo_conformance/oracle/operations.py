"""Every operation of the suite by name: `truth("group_advantages", parameters, inputs)` is what any target must answer.

Inputs and parameters have the names of the arguments of the core's function, token arrays come with `mask` or
`offsets`. Arrays are nested lists of numbers or hexadecimal strings, or have `tolist`; parameters are numbers.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mpmath import inf, mpf

from .advantages import clip_advantages, group_advantages, leave_one_out_advantages
from .evaluate import solve, solve_step
from .exact import at_digits, exact, exact_parameters
from .layout import layout_of
from .loss import weighting
from .penalty import ESTIMATORS
from .problem import AGGREGATION, RATIOS, SURROGATES, read_problem
from .ratio import ratios
from .returns import gae_advantages, reinforce_pp_advantages, reinforce_returns, whiten
from .rewards import (
    clip_rewards,
    informative_groups,
    informative_margin,
    normalize_rewards,
    soft_overlong_penalty,
    token_kl_rewards,
)
from .scales import Output, estimator_scales, ratio_scale
from .surrogate import clip_value
from .terms import NOTHING, Outputs, Term, laid, mapped, one_each, one_of, sized


@dataclass(frozen=True)
class Truth:
    """Every output by name with its scale, and the distance to the nearest decision, infinite where nothing is decided."""

    outputs: dict[str, Output]
    kink_margin: mpf = inf


@at_digits
def truth(operation: str, parameters: Mapping[str, Any], inputs: Mapping[str, Any]) -> Truth:
    """The outputs of one operation of the suite.

    >>> from mpmath import nstr
    >>> found = truth("group_advantages", {"ddof": 0, "eps": 0}, {"rewards": [0.0, 1.0, 0.5], "groups": [4, 4, 9]})
    >>> [nstr(value, 25) for value in found.outputs["advantages"].value]
    ['-1.0', '1.0', '0.0']
    """
    if operation not in _OPERATIONS:
        raise ValueError(f"operation: expected one of {', '.join(_OPERATIONS)}, got {operation!r}")
    function, given = _OPERATIONS[operation], {**plain(inputs), **plain(parameters)}
    _check_names(operation, function, given, set(inputs) & set(parameters))
    found = function(**given)
    return found if isinstance(found, Truth) else Truth(found)


def plain(tree: Any) -> Any:
    """Arrays of any framework -> nested lists of numbers."""
    if hasattr(tree, "tolist"):
        return tree.tolist()
    if isinstance(tree, Mapping):
        return {name: plain(branch) for name, branch in tree.items()}
    return [plain(branch) for branch in tree] if isinstance(tree, list | tuple) else tree


def _check_names(operation: str, function: Callable[..., Any], given: Mapping[str, Any], twice: set[str]) -> None:
    """One clear error for a name that is missing, unknown or given twice."""
    known = inspect.signature(function).parameters
    missing = [name for name, entry in known.items() if entry.default is entry.empty and name not in given]
    for problem, names in (("missing", missing), ("unknown", set(given) - set(known)), ("given twice", twice)):
        if names:
            raise ValueError(f"{operation}: {problem}: {', '.join(sorted(names))}; expected {', '.join(known)}")


def _policy_loss(
    objective: Any,
    logp: Any,
    old_logp: Any,
    advantages: Any,
    *,
    ref_logp: Any = None,
    behavior_logp: Any = None,
    groups: Any = None,
    normalizer: Any = None,
    mask: Any = None,
    offsets: Any = None,
) -> Truth:
    """L, dL/dlogp, its sum and count, metrics (GSPO-GRAD-1)."""
    tokens = {"logp": logp, "old_logp": old_logp, "ref_logp": ref_logp, "behavior_logp": behavior_logp}
    rest = {"advantages": advantages, "groups": groups, "normalizer": normalizer, "mask": mask, "offsets": offsets}
    result = solve(read_problem(objective, tokens | rest))
    return Truth(result.outputs, result.kink_margin)


def _step(objective: Any, parts: Sequence[Mapping[str, Any]], *, normalizer: Any = None) -> Truth:
    """The loss of the union of the parts, and the gradient of each part in its own layout (GSPO-DIST-1, GSPO-AGG-8)."""
    shared = {} if normalizer is None else {"normalizer": normalizer}
    whole, gradients = solve_step([read_problem(objective, {**part, **shared}) for part in parts])
    named = {f"gradient.{index}": gradient for index, gradient in enumerate(gradients)}
    return Truth({"loss": whole.loss} | named, whole.kink_margin)


def _pipeline(
    objective: Any,
    rewards: Any,
    groups: Any,
    logp: Any,
    old_logp: Any,
    *,
    advantages: Mapping[str, Any] | None = None,
    ref_logp: Any = None,
    behavior_logp: Any = None,
    normalizer: Any = None,
    mask: Any = None,
    offsets: Any = None,
) -> Truth:
    """Rewards -> group advantages -> loss; what the advantages err by goes into the scales of all that follows (GSPO-ADV-1)."""
    found = group_advantages(rewards, groups, **(advantages or {}))
    tokens = {"logp": logp, "old_logp": old_logp, "ref_logp": ref_logp, "behavior_logp": behavior_logp}
    rest = {"groups": groups, "normalizer": normalizer, "mask": mask, "offsets": offsets}
    computed = {"advantages": found["advantages"].value, "advantage_scales": found["advantages"].scale}
    result = solve(read_problem(objective, tokens | rest | computed))
    return Truth(found | result.outputs, result.kink_margin)


def _ratio(kind: str, logp: Any, old_logp: Any, *, mask: Any = None, offsets: Any = None) -> Outputs:
    """x per token, 1 at uncounted ones, or per response; on-policy exactly 1 (GSPO-RATIO-1, -2, -3, -7, -8)."""
    one_of("kind", kind, RATIOS)
    layout = layout_of(logp, mask=mask, offsets=offsets)
    objective, neutral = {"ratio": kind, "log_ratio_cap": None}, (mpf(1), mpf(0))
    rows = [
        [(x.value, ratio_scale(x) if x.spread else mpf(0)) for x in ratios(objective, new, new, old)]
        for new, old in zip(layout.gather(logp), layout.gather(old_logp), strict=True)
    ]
    if kind in ("sequence", "product"):
        return {"ratio": laid([row[0] if row else neutral for row in rows])}
    return {"ratio": laid(layout.scatter(rows, neutral))}


def _clipped_surrogate(ratio: Any, advantages: Any, clip: Mapping[str, Any]) -> Outputs:
    """J = min(x A, clip(x) A), for A < 0 at least c A; element by element (GSPO-SURR-1 to -5, GSPO-SURR-12)."""
    bounds = SURROGATES["clip"] | exact_parameters(clip)

    def unit(x: Any, advantage: Any) -> Term:
        a = exact(advantage)
        return sized(clip_value(bounds, exact(x), a)) if a else NOTHING

    return {"value": laid(mapped(unit, ratio, advantages))}


def _aggregate(
    values: Any,
    *,
    mode: Mapping[str, Any],
    groups: Any = None,
    normalizer: Any = None,
    mask: Any = None,
    offsets: Any = None,
) -> Outputs:
    """(1/M) sum omega_i sum v; the scale is that of |v| (GSPO-AGG-1 to -8)."""
    layout = layout_of(values, mask=mask, offsets=offsets)
    if groups is not None:
        one_each("groups", groups, layout.counted)
    aggregation = AGGREGATION | exact_parameters(mode)
    given = None if normalizer is None else exact(normalizer)
    weighed = weighting(aggregation, layout.lengths, groups, given)
    rows = layout.gather(values)
    sizes = [[abs(value) for value in row] for row in rows]
    return {"value": Output(weighed.mean(rows), weighed.mean(sizes))}


def _kl_penalty(logp: Any, ref_logp: Any, *, estimator: str = "k3") -> Outputs:
    """The estimate at every position (GSPO-KL-1 to -4)."""
    one_of("estimator", estimator, tuple(ESTIMATORS))

    def token(new: Any, ref: Any) -> Term:
        z = exact(new) - exact(ref)
        return ESTIMATORS[estimator](z)[0], estimator_scales(estimator, z)[0]

    return {"value": laid(mapped(token, logp, ref_logp))}


def _informative_groups(rewards: Any, groups: Any, *, low: Any = None, high: Any = None, valid: Any = None) -> Truth:
    """Which groups stay, and how near one came to a bound (GSPO-REWARD-6)."""
    bounds = {"low": low, "high": high, "valid": valid}
    return Truth(informative_groups(rewards, groups, **bounds), informative_margin(rewards, groups, **bounds))


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "policy_loss": _policy_loss,
    "ratio": _ratio,
    "clipped_surrogate": _clipped_surrogate,
    "aggregate": _aggregate,
    "kl_penalty": _kl_penalty,
    "group_advantages": group_advantages,
    "leave_one_out_advantages": leave_one_out_advantages,
    "gae_advantages": gae_advantages,
    "reinforce_returns": reinforce_returns,
    "whiten": whiten,
    "reinforce_pp_advantages": reinforce_pp_advantages,
    "clip_advantages": clip_advantages,
    "clip_rewards": clip_rewards,
    "normalize_rewards": normalize_rewards,
    "token_kl_rewards": token_kl_rewards,
    "soft_overlong_penalty": soft_overlong_penalty,
    "informative_groups": _informative_groups,
    "step": _step,
    "pipeline": _pipeline,
}

OUTPUTS: dict[str, tuple[str, ...]] = {
    "policy_loss": ("loss", "gradient", "sum", "count", "metrics.*"),
    "ratio": ("ratio",),
    "clipped_surrogate": ("value",),
    "aggregate": ("value",),
    "kl_penalty": ("value",),
    "group_advantages": ("advantages",),
    "leave_one_out_advantages": ("advantages",),
    "gae_advantages": ("advantages", "returns"),
    "reinforce_returns": ("returns",),
    "whiten": ("values",),
    "reinforce_pp_advantages": ("advantages",),
    "clip_advantages": ("advantages",),
    "clip_rewards": ("rewards",),
    "normalize_rewards": ("rewards",),
    "token_kl_rewards": ("rewards",),
    "soft_overlong_penalty": ("values",),
    "informative_groups": ("keep",),
    "step": ("loss", "gradient.*"),
    "pipeline": ("advantages", "loss", "gradient", "sum", "count", "metrics.*"),
}
