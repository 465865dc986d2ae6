"""The evidence of the log-probabilities, as findings."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..trainers.dialect import Finding
from ..words import plural
from .claim import Claim
from .evidence import ENOUGH, UNLIKE, UNRELATED, Evidence, Gap

EXACT, JUMP, NEAR = 1e-4, 10.0, 0.25


def evidence_findings(evidence: Evidence, claim: Claim) -> list[Finding]:
    """All of them."""
    tempered = _tempered(evidence)
    return [
        *_not_finite(evidence),
        *_positive(evidence),
        *_unscored(evidence),
        *_unscored_ends(evidence),
        *_repeated(evidence),
        *_misaligned(evidence),
        *(tempered or ([] if evidence.misaligned or evidence.unscored or evidence.repeated else _stale(evidence))),
        *_frozen(evidence),
        *_own_reference(evidence),
        *_rounded(evidence, claim),
        *_shifted(evidence),
        *_prompts(evidence),
        *_unknown(evidence),
    ]


def _not_finite(evidence: Evidence) -> Iterator[Finding]:
    """NaN or infinity where the mask counts."""
    if evidence.unknown:
        name, (count, place) = next(iter(evidence.unknown.items()))
        more = [other for other in evidence.unknown if other != name]
        told = f"{name} of {plural(count, 'response')} is not a number where the mask counts, first at {place} (counted from 0)"
        told += f"; so {'is' if len(more) == 1 else 'are'} {' and '.join(more)}" if more else ""
        costs = "one such token makes the loss of its step, and then every weight, not a number"
        yield Finding("not-finite", "error", name, told, "GSPO-NUM-6", costs)


def _positive(evidence: Evidence) -> Iterator[Finding]:
    """Log-probabilities above 0: probabilities, or negative log-likelihoods."""
    if evidence.positive:
        names = list(evidence.positive)
        told = f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} above 0 since step {min(evidence.positive[names[0]])}: these are no log-probabilities"
        costs = "what is recomputed from them means nothing"
        fix = "record log π of the sampled tokens, not π and not the cross-entropy -log π"
        yield Finding("not-log-probabilities", "error", names[0], told, "GSPO-DATA-5", costs, fix)


def _unscored(evidence: Evidence) -> Iterator[Finding]:
    """Counted tokens whose log-probability is that of nothing."""
    for name, found in evidence.unscored.items():
        other = "old_logp" if name == "logp" else "logp"
        count = plural(sum(count for _, count in found), "counted token")
        told = f"{name} is exactly 0 at {count} since step {found[0][0]}, where {other} is not near it: they were not scored"
        costs = "their ratio is made of one policy alone; a loss that leaves them out is not that of the mask that was recorded"
        fix = "count the tokens that are scored, and score those that count: one mask for both"
        yield Finding("unscored-tokens", "error", name, told, "GSPO-DATA-4", costs, fix)


def _unscored_ends(evidence: Evidence) -> Iterator[Finding]:
    """No token is masked, and most responses end in tokens that neither policy scored."""
    ends = [count for count in evidence.ends or () if count]
    if sum(ends) >= ENOUGH and 2 * len(ends) > len(evidence.ends or ()) and min(ends) < max(ends):
        told = (
            f"nothing is masked, and the last {min(ends)} to {max(ends)} tokens of {len(ends)} of "
            f"{plural(len(evidence.ends or ()), 'response')} have log-probabilities of exactly 0 in both policies"
        )
        costs = (
            "where these are padding, |y_i| is the padded width: ratios are pulled to 1, short responses count for less"
        )
        fix = "end the mask where the response ends; a policy that is sure of so many tokens has collapsed"
        yield Finding("unscored-ends", "warning", "mask", told, "GSPO-DATA-4", costs, fix)


def _repeated(evidence: Evidence) -> Iterator[Finding]:
    """Micro-batches that were scored as another one was."""
    for (part, first), step in list(evidence.repeated.items())[:4]:
        told = f"logp of {part} is that of {first} to the last bit, since step {step}, and old_logp is not: the same tokens were scored twice"
        costs = "what was sampled for one of the two is never trained; the ratio compares different tokens"
        fix = "take each micro-batch of a step once, and old_logp, advantages and mask together with its tokens"
        yield Finding("repeated-logp", "error", "logp", told, "GSPO-DATA-5", costs, fix)


def _misaligned(evidence: Evidence) -> Iterator[Finding]:
    """Log-probabilities of the neighbouring token, or of another response."""
    for (name, words), step in evidence.misaligned.items():
        costs = "the ratio compares different tokens, and is far from 1 whatever the policy does"
        fix = "logits at a place score the token behind it: logits[:, :-1] and tokens[:, 1:], on both sides"
        fix = "take logp and old_logp through every shuffle and gather together" if "response" in words else fix
        yield Finding("misaligned-logp", "error", name, f"{name} {words}, since step {step}", "GSPO-DATA-5", costs, fix)


def _tempered(evidence: Evidence) -> list[Finding]:
    """Two scorings of the same tokens that differ as two temperatures do."""
    alone = _ranks_alone(evidence)
    first = evidence.first_of[alone[0]] if alone else evidence.first
    pairs = (
        (f"logp and old_logp of first mini-batches{_on(alone)}", "old_logp", first),
        ("old_logp and the sampler's log-probabilities", "behavior_logp", evidence.sampler_of_old),
    )
    for what, key, gaps in pairs:
        bad = [one for one in gaps if one.tempered]
        if bad and len(bad) >= 0.5 * len([one for one in gaps if one.step >= bad[0].step]):
            return [_temperature(what, key, bad)]
    return []


def _ranks_alone(evidence: Evidence) -> list[int]:
    """The ranks whose first mini-batches have ratios other than 1, where those of other ranks have none."""
    moved = [rank for rank, gaps in evidence.first_of.items() if any(one.largest > EXACT for one in gaps)]
    return sorted(moved) if len(moved) < len(evidence.first_of) else []


def _on(ranks: list[int]) -> str:
    return f" on rank {', '.join(map(str, ranks[:8]))} alone" if ranks else ""


def _temperature(what: str, key: str, bad: list[Gap]) -> Finding:
    slope = float(np.median([one.slope for one in bad]))
    explained = float(np.median([one.explained for one in bad]))
    ratio = float(np.median([one.temperature for one in bad]))
    told = (
        f"{what} differ as two temperatures do since step {bad[0].step}: d = {slope:+.3f} log p explains {explained:.0%} of its "
        f"variance in {plural(len(bad), 'step')}; the first temperature is about {ratio:.2f} times the second"
    )
    costs = "the ratio measures the temperature, not the change of the policy: confident tokens look unchanged, rare ones clipped"
    fix = "score with the temperature that sampled, and without label smoothing, on both sides"
    return Finding("temperature", "error", key, told, "GSPO-DATA-5", costs, fix)


def _stale(evidence: Evidence) -> Iterator[Finding]:
    """First mini-batches in which s is far from 1 where it was 1 before, or where the sampler agrees with the new policy."""
    sampler = {one.step: one for one in evidence.sampler}
    clean = [one for one in evidence.first if one.largest <= EXACT]
    floor = max(float(np.median([one.std for one in clean])) if clean else 0.0, EXACT / JUMP)
    moved = [one for one in evidence.first if one.std > JUMP * floor or abs(one.mean) > JUMP * floor]
    sure = [one for one in moved if one.step in sampler and sampler[one.step].std < NEAR * one.std]
    bad = moved if clean else sure
    # Noise that comes and goes is not staleness: from its first step on it stays.
    if not bad or len(bad) < 0.8 * sum(one.step >= bad[0].step for one in evidence.first):
        yield from _mixed(clean, bad)
        return
    if sum(one.count for one in bad) >= ENOUGH and _are_unrelated(bad):
        yield _unrelated(bad)
        return
    told = (
        f"old_logp{_on(_ranks_alone(evidence))} is stale since step {bad[0].step}: in {plural(len(bad), 'first mini-batch', 'first mini-batches')}, where new and "
        f"old policy are the same, log-ratios of tokens have mean {bad[0].mean:+.2g} and spread {bad[0].std:.2g}"
    )
    if sure:
        told += f", while the sampler is within {sampler[sure[0].step].std:.1g} of the new policy"
    elif clean:
        told += f"; {plural(len(clean), 'other first mini-batch is', 'other first mini-batches are')} exact"
    costs = "the clip range is spent before the first update: responses are held for what earlier updates did"
    fix = "score old_logp with the weights that sampled, at the start of each rollout"
    yield Finding("stale-old-logp", "error", "old_logp", told, "GSPO-DATA-5", costs, fix)


def _mixed(clean: list[Gap], moved: list[Gap]) -> Iterator[Finding]:
    """First mini-batches of which some are exact, again and again, and others are not."""
    if min(len(clean), len(moved)) < 2 or clean[-1].step < moved[0].step:
        return
    steps = ", ".join(str(one.step) for one in moved[:4]) + (", ..." if len(moved) > 4 else "")
    told = (
        f"every ratio is 1 in {len(clean)} of {plural(len(clean) + len(moved), 'first mini-batch', 'first mini-batches')}, and log-ratios of tokens "
        f"have a spread of {np.median([one.std for one in moved]):.2g} in the others (steps {steps}): these are not the first of their "
        "rollouts, or their old_logp is stale"
    )
    costs = "marks in the wrong places make learning look like mismatch"
    fix = "mark a rollout where it begins (trace.rollout(), steps_per_rollout of verl's recorder); where it is, score old_logp there"
    yield Finding("mixed-first-minibatches", "error", "old_logp", told, "GSPO-DATA-5", costs, fix)


def _are_unrelated(bad: list[Gap]) -> bool:
    """Whether one scoring says nothing of the other: they are of different tokens, or one is a constant."""
    return min(one.std for one in bad) > UNLIKE and bool(np.median([one.slope for one in bad]) <= UNRELATED)


def _unrelated(bad: list[Gap]) -> Finding:
    told = f"old_logp has nothing to do with logp since step {bad[0].step}: in {plural(len(bad), 'first mini-batch', 'first mini-batches')}, where "
    told += f"both are of one policy, log-ratios of tokens have spread {bad[0].std:.2g}, and neither log-probability tells the other"
    costs = "the ratio compares different tokens, and is far from 1 whatever the policy does"
    fix = "take old_logp through every shuffle, padding and gather together with its tokens"
    return Finding("unrelated-logp", "error", "old_logp", told, "GSPO-DATA-5", costs, fix)


def _frozen(evidence: Evidence) -> Iterator[Finding]:
    """Ratios of exactly 1 in every later mini-batch: the old policy is the detached new one, or nothing moves the policy."""
    still = evidence.frozen or evidence.idle
    if len(still) < 2 or len(still) <= 4 * len(evidence.moving):
        return
    told = f"every ratio is exactly 1 in {plural(len(still), 'later mini-batch', 'later mini-batches')} since step {still[0]}: "
    costs = "the clip never acts; GSPO, GRPO and REINFORCE coincide"
    fix = "keep the old_logp of the start of the rollout; where it is kept, see what the optimiser does"
    at_rate = f", though the learning rate is {evidence.rate:.3g}" if evidence.rate else ""
    severity = "error"
    if not evidence.frozen:
        severity, told, fix = "note", f"{told}the learning rate is 0, and no step before them moves the policy", ""
    elif evidence.rescored & set(still):
        told += (
            "old_logp is the detached new policy [ratio.always-one], another one whenever the same responses come again"
        )
    elif evidence.kept & set(still):
        severity = "error" if at_rate else "warning"
        told += f"no step moves the policy{at_rate}: old_logp is kept, and logp of the same responses is what it was"
        costs, fix = (
            "nothing is learnt",
            "see which weights the optimiser holds, and whether their dtype holds its updates",
        )
        fix += "" if at_rate else "; a learning rate of 0, as at the start of a warm-up, is no fault"
    else:
        told += f"old_logp is the detached new policy [ratio.always-one], or no step moves the policy{at_rate or ' (a learning rate of 0)'}"
    yield Finding("frozen-ratio", severity, "old_logp", told, "GSPO-METRIC-7", costs, fix)


def _own_reference(evidence: Evidence) -> Iterator[Finding]:
    """A reference policy that is the new one, though that has moved since the rollout."""
    if evidence.own_reference:
        steps = plural(len(evidence.own_reference), "step")
        told = f"ref_logp is logp itself in {steps} since step {evidence.own_reference[0]}, in which logp is no longer old_logp: "
        told += "the reference policy is the one that is trained"
        costs = "the KL term is 0 whatever the policy does, and holds it nowhere"
        fix = "a copy of the weights of the start, without gradient, that no optimiser step reaches"
        yield Finding("own-reference", "error", "ref_logp", told, "GSPO-KL-7", costs, fix)


def _rounded(evidence: Evidence, claim: Claim) -> Iterator[Finding]:
    names = [name for name in ("logp", "old_logp") if evidence.rounded.get(name)]
    if not names:
        return
    since = min(evidence.rounded[name][0] for name in names)
    told = f"{' and '.join(names)} {'are' if len(names) > 1 else 'is'} rounded to bfloat16 since step {since}: every value has at most 8 significant bits"
    high = getattr(claim.objective.surrogate, "high", None)
    costs = "neighbouring values near -1 are 0.0039 to 0.0078 apart"
    if high is not None and high < 2**-8:
        costs += f", {2**-8 / max(high, 1e-12):.0f} times the range above 1"
    yield Finding(
        "bfloat16-logp",
        "error",
        names[0],
        told,
        "GSPO-NUM-1",
        costs,
        "take log-probabilities from float32 logits, and keep them in float32",
    )


def _shifted(evidence: Evidence) -> Iterator[Finding]:
    if evidence.shifted:
        told = f"the mask lies one place beside the tokens that the sampler scored, since step {evidence.shifted[0]} [mask.shifted]"
        yield Finding(
            "mask.shifted",
            "error",
            "mask",
            told,
            "GSPO-DATA-4",
            "the first token of a response is lost, one behind it is trained",
        )


def _prompts(evidence: Evidence) -> Iterator[Finding]:
    if evidence.prompts:
        told = f"the mask begins before the first token that the sampler scored, in every response, since step {evidence.prompts[0]} [mask.prompt-counted]"
        costs = "the prompt is in the ratio and in the loss: a policy is trained to write prompts"
        yield Finding("mask.prompt-counted", "error", "mask", told, "GSPO-DATA-4", costs)


def _unknown(evidence: Evidence) -> Iterator[Finding]:
    if not evidence.minibatches_known:
        told = "which step is the first of its rollout was not recorded (minibatch): stale old log-probabilities cannot be told from learning"
        yield Finding(
            "unknown-minibatch",
            "note",
            "minibatch",
            told,
            "",
            "",
            "call trace.rollout() where a rollout begins, or write minibatch",
        )
