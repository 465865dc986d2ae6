"""Loss, metrics and gradient of a step at once, by the core's formulas, without autograd.

Where T_i and Σ_t d_{i,t} determine the loss, tokens are read once and the rest happens on `[S]` entries;
what is kept for the backward pass is one number per response. Elsewhere a scan of the tokens, in host memory, leaves one
number per token. What neither covers goes the long way: the core's array functions on all tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gspo_core import Cispo, Objective, PolicyLoss, Reinforce, Unclipped, Vespo
from gspo_core.aggregation import divide
from gspo_core.arrays import compute_dtype, times
from gspo_core.gradient import step_gradient
from gspo_core.loss import step_solution
from gspo_core.metrics import step_metrics
from gspo_core.responses import needs_no_tokens, response_step
from gspo_core.sequences import Layout
from gspo_core.step import bind, prepare, unit_log_ratio
from gspo_core.validation import check_finite, reads_values

from .backend import backend, numpy, numpy_of
from .corrected import response_weights, token_weights
from .penalised import add_penalty
from .solution import Solution, places
from .token_surrogates import Terms, covers, finish, scan
from .tokens import LogRatioSums, log_ratio_sums, scaled, spread, token_sums


def solve(objective: Objective, logp: Tensor, rest: dict[str, Any]) -> Solution:
    """`rest`: the other arguments of `policy_loss`."""
    tokens = {name: rest[name] for name in ("old_logp", "ref_logp", "behavior_logp")}
    layout = bind(objective, rest["sequences"], rest["advantages"], rest["groups"], logp=logp, **tokens)
    found = _at_once(objective, layout, logp, rest) if logp.numel() else None
    if found is not None:
        return found
    step = prepare(objective, logp=logp, **rest)
    (loss, metrics), gradient = step_solution(step)
    return Solution(loss, metrics, gradient.mul, places(layout))


def _at_once(objective: Objective, layout: Layout, logp: Tensor, rest: dict[str, Any]) -> Solution | None:
    """Where one reading of the tokens is enough."""
    if needs_no_tokens(objective, rest["advantages"], layout.num_sequences):
        return _by_response(objective, layout, logp, rest)
    if numpy is None or not backend.can_inspect(logp):
        return None
    if _needs_sums(objective, layout, rest["advantages"]):
        return _by_response(objective, layout, logp, rest)
    if covers(objective, layout, rest["advantages"]):
        return _by_token(objective, layout, logp, rest)
    if objective.penalty is None:
        return None
    found = _at_once(objective.replace(penalty=None), layout, logp, rest)
    return None if found is None else add_penalty(found, objective, layout, logp, rest)


def _needs_sums(objective: Objective, layout: Layout, advantages: Any) -> bool:
    """Whether Σ_t log π_θ or the correction's mean weight is all that is missing of what responses determine."""
    weighted, by_token = _is_weighted(objective), any(one.level == "token" for one in objective.correction)
    if not objective.per_sequence and (by_token or not weighted):
        return False
    like = objective.replace(correction=(), surrogate=Unclipped() if weighted else objective.surrogate)
    return needs_no_tokens(like, advantages, layout.num_sequences)


def _is_weighted(objective: Objective) -> bool:
    """J = sg[weight] A log π_θ."""
    return isinstance(objective.surrogate, (Reinforce, Cispo, Vespo))


def _by_response(objective: Objective, layout: Layout, logp: Tensor, rest: dict[str, Any]) -> Solution:
    old_logp = rest["old_logp"]
    sums = log_ratio_sums(logp, old_logp, layout, compute_dtype(logp, old_logp))
    if reads_values(logp) and not math.isfinite(sums.tokens.divergence):
        # A log-probability is not finite, or only e^d is not: the slow check tells.
        check_finite("logp", logp, layout.counted)
        check_finite("old_logp", old_logp, layout.counted)
    weight = response_weights(objective, layout, logp, rest)
    logps = token_sums(logp, layout, sums.lengths.dtype) if _is_weighted(objective) else None
    if numpy is not None and backend.can_inspect(logp):
        (loss, metrics), coefficient = _in_numpy(_entries, objective, sums, rest, weight, logps)
    else:
        options = (rest[name] for name in ("advantages", "groups", "normalizer"))
        (loss, metrics), coefficient = _entries(objective, sums, *options, weight, logps)
    return Solution(loss, metrics, lambda factor: spread(coefficient * factor, layout), places(layout))


def _by_token(objective: Objective, layout: Layout, logp: Tensor, rest: dict[str, Any]) -> Solution | None:
    terms, weight = _terms(objective, layout, logp, rest)
    scanned = scan(terms)
    if scanned is None or not (weight is None or weight.isfinite().all()):
        return None
    sums, slopes = scanned
    if not terms.by_response:
        rest = rest | {"advantages": torch.ones_like(sums.lengths)}
    (loss, metrics), scale = _in_numpy(finish, objective, sums, rest, weight)
    return Solution(loss, metrics, lambda factor: scaled(slopes, scale * factor, layout), places(layout))


def _terms(objective: Objective, layout: Layout, logp: Tensor, rest: dict[str, Any]) -> tuple[Terms, Tensor | None]:
    """What a scan reads, and the correction's weight of each response where tokens have none of their own."""
    dtype = compute_dtype(logp, rest["old_logp"])
    advantages = rest["advantages"].detach().to(dtype).resolve_neg()
    terms = Terms(objective, layout, logp, rest["old_logp"], advantages)
    if objective.ratio != "token":
        responses = log_ratio_sums(logp, rest["old_logp"], layout, dtype)
        units = responses.log_ratio if objective.ratio == "product" else divide(*responses[:2])
        terms = terms._replace(responses=responses, units=units)
    by_token = any(one.level == "token" for one in objective.correction) or not terms.by_response
    if objective.correction and by_token and not objective.per_sequence:
        return terms._replace(weights=token_weights(objective, layout, logp, rest)), None
    return terms, response_weights(objective, layout, logp, rest)


def _entries(
    objective: Objective, sums: LogRatioSums, advantages: Any, groups: Any, normalizer: Any, weight: Any, logps: Any
) -> tuple[PolicyLoss, Any]:
    """The loss, and d loss / d log π_θ at each token of each response; `weight` is that of its correction.

    `logps`, Σ_t log π_θ, where J is linear in them: the loss is their product with its gradient.
    """
    options = {"advantages": advantages, "groups": groups, "normalizer": normalizer}
    step = response_step(objective, log_ratio=sums.log_ratio, lengths=sums.lengths, **options)
    if weight is not None:
        step = step.replace(effective=times(step.advantages, weight))
    if logps is not None:
        gradient = step_gradient(step)
        metrics = step_metrics(step, unit_log_ratio(step), None, sums.tokens)
        return PolicyLoss(step.xp.sum(gradient * logps), metrics), gradient
    return step_solution(step, sums.tokens)


def _in_numpy(
    function: Callable[..., tuple[PolicyLoss, Any]], objective: Objective, sums: Any, rest: dict[str, Any], *more: Any
) -> tuple[PolicyLoss, Tensor]:
    """The same through NumPy views: on `[S]` entries a call is all overhead, and NumPy has a third of it."""
    options = map(_view, (rest["advantages"], rest["groups"], rest["normalizer"], *more))
    with numpy.errstate(all="ignore"):
        found, coefficient = function(objective, _view(sums), *options)
    new_tensor, metrics = sums.lengths.new_tensor, found.metrics
    # The loss is no view of a tensor that others share: its caller may change it in place.
    values = dict(zip(metrics, new_tensor([float(value) for value in metrics.values()]).unbind(), strict=True))
    return PolicyLoss(new_tensor(float(found.loss)), values), torch.from_numpy(coefficient)


def _view(value: Any) -> Any:
    """NumPy views of a tensor, or of the tensors of a named tuple; anything else as it is."""
    if isinstance(value, tuple):
        return type(value)(*map(_view, value))
    return numpy_of(value) if isinstance(value, Tensor) else value
