"""Losses and gradients of a run with other advantages than those it recorded, or with a term more than it claims."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from gspo_core import Aggregation, Penalty

from ..spec_numbers import round_to
from ..tensors import NumPyArray
from .evidence import MOVES
from .exact import Exact, NotComputable
from .recomputed import Recomputed, exact_gradient
from .shards import Broken
from .variants import Explanation, Right

SAME = 1e-4
BOUNDS = (0.5, 1.0, 2.0, 3.0, 5.0, 10.0)
_COST = "the policy is rewarded for something else than the trace says"


def by_no_loss(recorded: Sequence[Recomputed]) -> Iterator[Explanation]:
    """Losses that are no numbers, or exactly 0, where those of what was recorded are neither."""
    losses = [one.part.loss or 0.0 for one in recorded]
    if losses and not np.isfinite(losses).any():
        told = "the run's loss is not a number, where that of the log-probabilities and advantages it recorded is one"
        yield Explanation("not-finite", "GSPO-NUM-6", told, "one optimiser step with it, and every weight is lost")
    elif losses and not any(losses) and not recorded[0].objective.correction:
        told = "every loss that differs is exactly 0: these micro-batches are left out"
        yield Explanation("no-loss", "GSPO-AGG-8", told, "their responses are sampled and scored, and train nothing")


def by_sampler(few: Sequence[Recomputed], right: Right) -> Iterator[Explanation]:
    """Losses of the ratio to the policy that sampled, as the sampler scored it; or of what its weights, held between bounds, make of it."""
    with suppress(NotComputable):
        if few[0].objective.correction and all(right(one, _loss_corrected_twice(one)) for one in few):
            told = "the ratio is to the sampler, behavior_logp in place of old_logp, and the weights of the correction are in the loss as well"
            yield Explanation("sampler-as-old", "GSPO-CORR-5", told, "the mismatch is in the loss twice")
            return
    for low, high in ((0.0, np.inf), (1.0, np.inf), *((0.0, bound) for bound in BOUNDS)):
        with suppress(NotComputable, ValueError):
            if all(right(one, _loss_to_sampler(one, low, high)) for one in few):
                told = "the ratio is to the sampler: the loss is that of behavior_logp in place of old_logp"
                if low:
                    told = "the ratio is to the smaller of old_logp and behavior_logp, token by token"
                elif high < np.inf:
                    told = f"the ratio has the weights of the sampler in it, π_old / μ of a token held at {high:g}"
                yield Explanation("sampler-as-old", "GSPO-DATA-5", told, "s is not 1 where nothing was learnt")
                return


def _loss_corrected_twice(one: Recomputed) -> float:
    """The loss of the ratio to the sampler, with the weights that the old policy has."""
    tokens = one.part.tokens
    if (
        tokens.behavior_logp is None
        or tokens.old_logp is None
        or any(c.numerator != "old" for c in one.objective.correction)
    ):
        raise NotComputable("old_logp, behavior_logp not recorded, or weights of the current policy")
    sampler = np.asarray(tokens.behavior_logp, np.float64)
    moved = replace(tokens, old_logp=sampler, behavior_logp=2 * sampler - tokens.old_logp)
    return one.anew(one.objective, moved).loss(one.normalizer)


def _loss_to_sampler(one: Recomputed, low: float, high: float) -> float:
    tokens = one.part.tokens
    if tokens.behavior_logp is None or tokens.old_logp is None:
        raise NotComputable("old_logp, behavior_logp not recorded")
    weights = np.asarray(tokens.old_logp, np.float64) - tokens.behavior_logp
    with np.errstate(divide="ignore"):
        other = tokens.old_logp - np.clip(weights, np.log(low), np.log(high))
    return one.anew(one.objective, replace(tokens, old_logp=other)).loss(one.normalizer)


def by_other_tokens(few: Sequence[Recomputed], right: Right) -> Iterator[Explanation]:
    """Losses of log-probabilities of one policy that are those of neighbouring tokens, or of other responses."""
    for name, (words, move) in product(("old_logp", "ref_logp", "behavior_logp"), MOVES):
        with suppress(NotComputable, Broken, ValueError):
            if len(few) > 1 and all(right(one, _loss_moved(one, name, move)) for one in few):
                told = f"the loss is that of {name} {words}, which is not how it was recorded"
                yield Explanation("misaligned-logp", "GSPO-DATA-5", told, "the ratio compares different tokens")
                return


def _loss_moved(one: Recomputed, name: str, move: Callable[[NumPyArray], NumPyArray]) -> float:
    """The loss with an array moved as it lies in its batch, padding included."""
    mask, values = one.part.array("mask"), one.part.array(name)
    if mask is None or values is None or mask.ndim != 2:
        raise NotComputable(f"no {name}, or no padded rows")
    moved = np.nan_to_num(move(values)[mask.astype(bool)])
    return one.anew(one.objective, replace(one.part.tokens, **{name: moved})).loss(one.normalizer)


def by_advantages(few: Sequence[Recomputed], right: Right) -> Iterator[Explanation]:
    """Losses of other advantages than the recorded ones: of another sign, in another order, held inside bounds, rounded."""
    for name, told, change in _ADVANTAGES:
        with suppress(NotComputable, Broken, ValueError, IndexError):
            if all(right(one, _loss_with(one, change)) for one in few):
                yield Explanation(name, "GSPO-ADV-1", f"the loss is that of {told}", _COST)
                return


Change = Callable[[NumPyArray, Recomputed], NumPyArray]


def _loss_with(one: Recomputed, change: Change) -> float:
    recorded = one.part.tokens.advantages
    if recorded is None:
        raise NotComputable("advantages not recorded")
    return one.anew(one.objective, replace(one.part.tokens, advantages=change(recorded, one))).loss(one.normalizer)


def _rewards(recorded: NumPyArray, one: Recomputed) -> NumPyArray:
    rewards = one.part.tokens.rewards
    if rewards is None or len(rewards) != len(recorded):
        raise NotComputable("rewards not recorded")
    return rewards


def _rounded(name: str) -> Change:
    return lambda recorded, _: np.asarray(round_to(np.asarray(recorded), name), np.float64)


_ADVANTAGES: tuple[tuple[str, str, Change], ...] = (
    ("advantage.negated", "the recorded advantages with the other sign", lambda a, _: -a),
    ("advantage.rewards", "the rewards in place of the advantages", _rewards),
    ("advantage.one-sign", "the positive advantages alone, 0 for the others", lambda a, _: np.maximum(a, 0)),
    ("advantage.one-sign", "the negative advantages alone, 0 for the others", lambda a, _: np.minimum(a, 0)),
    ("advantage.one-sign", "the absolute advantages", lambda a, _: np.abs(a)),
    ("advantage.order", "the recorded advantages in reverse order", lambda a, _: a[::-1]),
    ("advantage.order", "the recorded advantages, one response further", lambda a, _: np.roll(a, 1)),
    ("advantage.order", "the recorded advantages, one response back", lambda a, _: np.roll(a, -1)),
    *(
        ("low-precision", f"the recorded advantages, rounded to {name}", _rounded(name))
        for name in ("bfloat16", "float16")
    ),
)


def by_terms(few: Sequence[Recomputed], right: Right) -> Iterator[Explanation]:
    """A KL term or an entropy bonus beside what is claimed: one coefficient makes up for every difference."""
    for ones in _divided_both_ways(few):
        explained = _other_penalties(ones, right) if few[0].objective.penalty is not None else _added_terms(ones, right)
        if found := next(explained, None):
            yield found
            return


def _divided_both_ways(few: Sequence[Recomputed]) -> Iterator[Sequence[Recomputed]]:
    """A term of its own divided as the losses are, and by what its micro-batch counts."""
    yield few
    if any(one.together for one in few):
        yield [replace(one, together=()) for one in few]


def _added_terms(few: Sequence[Recomputed], right: Right) -> Iterator[Explanation]:
    for told, reference, estimator, aggregation in _TERMS:
        with suppress(NotComputable, ValueError):
            terms = [
                _with_term(one, reference, estimator, aggregation).loss(one.normalizer) - one.expected for one in few
            ]
            excess = np.array([(one.part.loss or 0.0) - one.expected for one in few])
            coefficient = _least_squares(excess, np.array(terms))
            if coefficient and all(
                right(one, one.expected + coefficient * term) for one, term in zip(few, terms, strict=True)
            ):
                yield _added(coefficient, told)
                return


def _other_penalties(few: Sequence[Recomputed], right: Right) -> Iterator[Explanation]:
    """The claimed KL term with another coefficient, or of another policy."""
    for policy, estimator, words in _OTHERS:
        with suppress(NotComputable, ValueError):
            plain = [one.anew(one.objective.replace(penalty=None), one.part.tokens).loss(one.normalizer) for one in few]
            terms = [_penalised(one, policy, estimator) - loss for one, loss in zip(few, plain, strict=True)]
            excess = np.array([(one.part.loss or 0.0) - loss for one, loss in zip(few, plain, strict=True)])
            factor = _least_squares(excess, np.array(terms)) or float(policy == "old_logp" and np.any(terms))
            if factor and all(
                right(one, loss + factor * term) for one, loss, term in zip(few, plain, terms, strict=True)
            ):
                claimed = float(getattr(few[0].objective.penalty, "coefficient", 1.0))
                told = f"its KL term is {factor * claimed:.4g} times {words}, where {claimed:g} is claimed"
                yield Explanation(
                    "penalty", "GSPO-KL-7", told, "the policy is held nearer or less near than was asked for"
                )
                return


_OTHERS = (
    ("ref_logp", "", "the estimator"),
    ("old_logp", "", "the estimator of the old policy in place of the reference policy"),
    *(("ref_logp", name, f"{name}, another estimator") for name in ("k1", "k2", "k3", "abs")),
)


def _penalised(one: Recomputed, policy: str, estimator: str) -> float:
    """The claim's loss with the KL to that policy, by another estimator where one is named."""
    tokens, penalty = replace(one.part.tokens, ref_logp=getattr(one.part.tokens, policy)), one.objective.penalty
    other = replace(penalty, estimator=estimator) if penalty and estimator else penalty
    return one.anew(one.objective.replace(penalty=other), tokens).loss(one.normalizer)


def _added(coefficient: float, told: str) -> Explanation:
    words = f"it is the claimed loss and {coefficient:.4g} times {told}"
    return Explanation("added-term", "GSPO-KL-7", words, "the policy is pulled where the paper does not pull it")


def _with_term(one: Recomputed, reference: str, estimator: str, aggregation: Aggregation | None) -> Exact:
    """The claim and the mean of a KL estimator over this micro-batch."""
    tokens = one.part.tokens
    values = np.zeros(tokens.count) if reference == "" else getattr(tokens, reference)
    if values is None:
        raise NotComputable(f"{reference} not recorded")
    penalty = Penalty(estimator, coefficient=1.0, aggregation=aggregation)
    return one.anew(one.objective.replace(penalty=penalty), replace(tokens, ref_logp=values))


def _least_squares(excess: NumPyArray, terms: NumPyArray) -> float:
    """The coefficient of a term; 0 where fewer than three micro-batches have it: two are fitted by accident."""
    if not np.isfinite(terms).all() or np.count_nonzero(np.abs(terms) > SAME * np.abs(terms).max(initial=0.0)) < 3:
        return 0.0
    return float(terms @ excess / (terms @ terms))


def by_gradient_terms(few: Sequence[Recomputed], precision: float) -> Iterator[Explanation]:
    """A term that is too small to show in the loss: the gradient is the claim's and one coefficient times the term's."""
    if not few or few[0].objective.penalty is not None:
        yield from _other_slopes(few, precision) if few else ()
        return
    for ones, (told, reference, estimator, aggregation) in product(list(_divided_both_ways(few)), _TERMS):
        with suppress(NotComputable, ValueError, np.linalg.LinAlgError):
            found = [
                _gradient_coefficient(one, _with_term(one, reference, estimator, aggregation), precision)
                for one in ones
            ]
            known = [value for value in found if value is not None]
            middle = float(np.median(known)) if known else 0.0
            if middle and all(abs(value / middle - 1) < 0.05 for value in known):
                yield _added(middle, told)
                return


def _other_slopes(few: Sequence[Recomputed], precision: float) -> Iterator[Explanation]:
    """The claimed KL term with another gradient than its value has, such as that of a reward."""
    claimed: Any = few[0].objective.penalty
    for (words, importance), estimator in product(_SLOPES, (claimed.estimator, "k1", "k2", "k3")):
        penalty = replace(claimed, estimator=estimator, importance=importance or None)
        with suppress(NotComputable, ValueError):
            if (words or penalty != claimed) and all(_has_slope(one, penalty, bool(words), precision) for one in few):
                told = f"the value of its KL term is {claimed.estimator}'s and the gradient that of {estimator}"
                told += words or (f" times the ratio of its {importance}" if importance else "")
                yield Explanation(
                    "penalty-gradient", "GSPO-KL-5", told, "the policy is pulled otherwise than is reported"
                )
                return


_SLOPES = (
    (" and, its value being a reward, of the probability of the token", "token"),
    ("", ""),
    ("", "token"),
)


def _has_slope(one: Recomputed, penalty: Penalty, scored: bool, precision: float) -> bool:
    """Whether the recorded gradient is the policy's with that of this KL term, from where the policy is where it is `scored`."""
    tokens, got = one.part.tokens, one.part.tokens.gradient
    plain = one.anew(one.objective.replace(penalty=None), tokens).gradient(one.normalizer)
    moved = replace(tokens, old_logp=tokens.logp) if scored else tokens
    both = one.objective.replace(penalty=penalty)
    want = one.anew(both, moved).gradient(one.normalizer)
    want = want - one.anew(both.replace(penalty=None), moved).gradient(one.normalizer) + plain
    _, uncertain = exact_gradient(one, precision)
    if got is None or got.shape != want.shape:
        raise NotComputable("no gradient")
    got, want = np.asarray(got, np.float64)[~uncertain], want[~uncertain]
    factor = float(got @ want / max(want @ want, 1e-300))
    slack = 64 * precision * np.abs(want).max(initial=0.0) + 16 * precision * one.truth.steepest_penalty(one.normalizer)
    return factor > 0 and bool(np.abs(got - factor * want).max(initial=0.0) <= factor * slack)


def _gradient_coefficient(one: Recomputed, both: Exact, precision: float) -> float | None:
    """c in g = f (g_claim + c g_term); None where the claim has no gradient, 0 where no c fits."""
    want, uncertain = exact_gradient(one, precision)
    total, _ = exact_gradient(replace(one, truth=both), precision)
    if want is None or total is None or total.size - uncertain.sum() < 8:
        return 0.0
    usable = ~uncertain
    got, want, total = (np.asarray(x, np.float64)[usable] for x in (one.part.tokens.gradient, want, total))
    if not np.any(want):
        return None
    pair = np.stack([want, total - want], axis=1)
    if not (np.isfinite(pair).all() and np.isfinite(got).all()):
        return 0.0
    factor, term = np.linalg.lstsq(pair, got, rcond=None)[0]
    off = np.abs(got - pair @ [factor, term]).max()
    fits = factor > 0 and off <= 64 * precision * np.abs(got).max()
    return float(term / factor) if fits else 0.0


_MEAN = Aggregation("token_mean")
_TERMS: tuple[tuple[str, str, str, Aggregation | None], ...] = (
    *(
        (f"{name} of the {policy} policy{how}", field, name, aggregation)
        for policy, field in (("reference", "ref_logp"), ("old", "old_logp"))
        for how, aggregation in (("", None), (", averaged over tokens", _MEAN))
        for name in ("k3", "k1", "k2")
    ),
    ("the mean log-probability of a response, as an entropy bonus has it", "", "k1", None),
    ("the mean log-probability of a token, as an entropy bonus has it", "", "k1", _MEAN),
)
