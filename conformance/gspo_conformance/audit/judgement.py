"""The audit of a trace: one pass over its steps, then what differs, since when, by how much, and which known deviation explains it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from ..mutants.registry import find
from ..noise.analysis import Analysis, analyse
from ..noise.findings import findings_of
from ..noise.responses import gate_of
from ..trainers.dialect import SEVERITIES, Finding
from ..words import plural, uncapitalised
from .advantages import Rollout, Rollouts, audit_advantages, candidates, fits, local, small_groups
from .claim import Claim, as_announced, findings_of_settings
from .coverage import Coverage, coverage_findings, usual_parts
from .differences import TELLING, Difference, Ledger, Series
from .evidence import Evidence
from .evidence_findings import evidence_findings
from .exact import NotComputable
from .handed import audit_handed, explain_handed
from .likeness import resembling
from .rearranged import rearranged
from .recomputed import Recomputed
from .reported import by_call_before, by_multiple, by_no_gradient
from .steps import StepAudit, audit_step
from .suspects import explain_gradient, explain_loss, explain_metric
from .together import explain_step
from .trace import Trace
from .variants import Explanation, from_mutant

MANY = 6
NO_KNOWN = "no known deviation gives these numbers"
# A metric that is right by another definition than the specification's says nothing against the run.
OTHER_DEFINITIONS = ("metrics.clip-by-response",)
# Where advantages differ within responses, no sequence ratio says whose gradient a token gets.
OF_TOKENS = "gradient.gspo-token-broadcast"


@dataclass(frozen=True)
class StepRow:
    """A step in numbers, for reports: the claim's loss, the run's, and what was recorded of it."""

    step: int
    minibatch: int | None
    parts: int
    tokens: int
    truth: float | None
    run: float | None


@dataclass
class Audit:
    """What was found. `findings` are sorted, the worst first; `ledger` says what was compared and what could not be, and how often."""

    trace: Trace
    claim: Claim
    findings: list[Finding] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    rows: list[StepRow] = field(default_factory=list)
    tokens: int = 0
    noise: Analysis | None = None

    @property
    def errors(self) -> list[Finding]:
        """What makes the run differ from its claim."""
        return [one for one in self.findings if one.severity == "error"]

    @property
    def compared(self) -> int:
        """How many numbers of the run were recomputed."""
        return sum(series.compared for series in self.ledger.series.values())

    @property
    def extent(self) -> str:
        """`6 steps (0 to 5), 1 rank, 486 tokens`."""
        steps, tokens = self.trace.indices, "token" if self.tokens == 1 else "tokens"
        span = f" ({steps[0]} to {steps[-1]})" if len(steps) > 1 else ""
        return f"{plural(len(steps), 'step')}{span}, {plural(len(self.trace.ranks), 'rank')}, {self.tokens:,} {tokens}"

    @property
    def numbers(self) -> str:
        """`84 numbers of the run recomputed, 12 differ`."""
        bad = sum(series.different for series in self.ledger.series.values())
        other = "; the errors are of another kind" if self.verdict == "differs" and not bad else ""
        return f"{plural(self.compared, 'number')} of the run recomputed, {bad or 'none'} {'differs' if bad == 1 else 'differ'}{other}"

    @property
    def verdict(self) -> str:
        """agrees, differs, or incomplete: nothing of the run, or of its losses, could be compared, or files are cut."""
        if any(one.rule not in ("truncated-file", "broken-file") for one in self.errors):
            return "differs"
        blind = not self.tokens and any(reason.startswith("loss:") for reason in self.ledger.missing)
        return "incomplete" if self.errors or not self.compared or blind else "agrees"

    @property
    def exit_code(self) -> int:
        """0 where the run agrees with its claim, 1 where it does not or not enough could be compared."""
        return int(self.verdict != "agrees")


@np.errstate(all="ignore")  # the numbers of a broken run overflow; they are compared all the same
def audit(trace: Trace, claim: Claim) -> Audit:
    """Reads every step once; what differs is read again to be explained."""
    found = Audit(trace, claim, ledger=Ledger(usual=usual_parts(trace), ranks=len(trace.ranks)))
    rollouts, evidence, coverage = Rollouts(), Evidence(), Coverage()
    ranks = int(trace.run.get("ranks") or len(trace.ranks))
    for step in trace.steps():
        audited = audit_step(step, claim, found.ledger)
        rollouts.add(step, found.ledger)
        evidence.add(step)
        coverage.add(step, ranks)
        found.rows.append(_row(audited))
        found.tokens += found.rows[-1].tokens
    for rollout in coverage.twice():
        if rollouts.found.pop(("rollout", rollout), None) is not None:
            found.ledger.miss("advantages: two rollouts under one number")
    gathered = list(rollouts.found.values())
    misplaced = audit_handed(gathered, claim.precision, found.ledger)
    bad = audit_advantages(rollouts, claim, trace.run.get("group_size"), found.ledger)
    found.findings = _sorted(
        [
            *coverage_findings(trace, coverage),
            *evidence_findings(evidence, claim),
            *(small_groups(gathered, trace.run.get("group_size")) if len(trace.ranks) == ranks else ()),
            *_differences(
                found, lambda: _explain_advantages(found, bad) if bad else explain_handed(misplaced, gathered)
            ),
            *_factors(found),
            *findings_of_settings(trace.run),
        ]
    )
    return found


@np.errstate(all="ignore")
def with_noise(found: Audit) -> Audit:
    """With what the noise model says; a finding of the audit wins over one of the same matter."""
    try:
        found.noise = analyse(found.trace, gate_of(found.claim.objective.to_dict()))
        more = findings_of(found.noise)
    except ArithmeticError as error:
        found.ledger.miss(f"noise: the log-probabilities are beyond its model ({error})")
        return found
    known = {one.rule for one in found.findings}
    other_tokens = {"unscored-tokens", "repeated-logp"}
    same = {"rounded-logp": {"bfloat16-logp", "coarse-record"}, "inert-ratio": {"frozen-ratio"}}
    causes = {"bfloat16-logp", "temperature", "mixed-first-minibatches"}
    same |= {"first-minibatch": other_tokens | causes, "sample-size": other_tokens}
    more = [one for one in more if not known & {one.rule, *same.get(one.rule, ())}]
    found.findings = _sorted([*found.findings, *(replace(one, rule=f"noise/{one.rule}") for one in more)])
    return found


def _sorted(findings: list[Finding]) -> list[Finding]:
    return sorted(as_announced(findings), key=lambda one: SEVERITIES.index(one.severity))


def _row(audited: StepAudit) -> StepRow:
    step = audited.step
    whole = len(audited.parts) == len(step.parts) and audited.parts
    tokens = sum(one.part.tokens.count for one in audited.parts)
    run = audited.reduced
    if run is None and len(step.parts) == 1:
        run = step.parts[0].loss
    return StepRow(step.index, step.minibatch, len(step.parts), tokens, audited.truth if whole else None, run)


def _differences(found: Audit, of_advantages: Callable[[], list[Explanation]]) -> Iterator[Finding]:
    """One finding per cause: what one deviation explains together is told once."""
    series = {one.what: one for one in found.ledger.bad()}
    advantages, step = series.pop("advantages", None), series.pop("step loss", None)
    if advantages is not None:
        yield _finding("advantages", [advantages], of_advantages())
    if step is not None and "loss" not in series:
        yield _finding("step-loss", [step], explain_step(found.trace, found.claim, step, found.ledger.shares))
    elif step is not None:
        series["step loss"] = step
    while series:
        primary = next(iter(series.values()))
        explained = _refined(found, series, _explain(found, primary))
        told = [primary, *_folded(found, series, primary, explained)]
        for one in told:
            del series[one.what]
        like = resembling(_again(found, primary)) if primary.what == "loss" and not explained else ""
        finding = _finding(_rule(primary), told, explained, like)
        unsaid = finding.rule == OF_TOKENS and found.claim.objective.ratio == "sequence"
        yield replace(finding, severity="warning") if unsaid else finding


def _factors(found: Audit) -> Iterator[Finding]:
    """Gradients that are another multiple of their loss's from step to step; and one multiple, as a note."""
    known = [(step, factor) for step, factor, _ in found.ledger.factors if np.isfinite(factor)]
    factors = [factor for _, factor in known]
    if not factors or any(one.what == "gradient" for one in found.ledger.bad()) or _go_with_losses(found.ledger):
        return
    low, high = min(factors), max(factors)
    if high > 1.001 * low:
        first = next(step for step, factor in known if abs(factor - factors[0]) > 1e-3 * factors[0])
        # No loss scaler changes inside a step.
        within = next((step for step, least, most in _ends(known) if most > 1.001 * least), None)
        told = f"the gradient is between {low:.6g} and {high:.6g} times that of the recorded loss, "
        told += f"changing at step {first}" if within is None else f"and not one multiple inside step {within}"
        costs = "responses weigh differently from micro-batch to micro-batch"
        costs = f"unless a loss scaler did this, {costs}" if within is None else costs
        yield Finding(
            "gradient-scale", "warning" if within is None else "error", "gradient", told, "GSPO-GRAD-1", costs
        )
    elif all(abs(low / expected - 1) > 1e-3 for expected in (1.0, 1.0 / (found.trace.run.get("ranks") or 1))):
        told = f"the gradient is {low:.6g} times that of the recorded loss: accumulation, ranks or a loss scaler"
        yield Finding("gradient-scale", "note", "gradient", told, "GSPO-GRAD-1")


def _go_with_losses(ledger: Ledger) -> bool:
    """Whether gradients are another multiple of what is due only where their losses are."""
    off = any(one.what == "loss" for one in ledger.bad())
    own = [factor / ratio for _, factor, ratio in ledger.factors if np.isfinite(factor)]
    return off and max(own) <= 1.001 * min(own)


def _ends(known: list[tuple[int, float]]) -> Iterator[tuple[int, float, float]]:
    """Each step with its least and its largest factor."""
    steps: dict[int, list[float]] = {}
    for step, factor in known:
        steps.setdefault(step, []).append(factor)
    return ((step, min(factors), max(factors)) for step, factors in steps.items())


def _rule(series: Series) -> str:
    return "metric" if series.what.startswith("metrics.") else series.what.replace(" ", "-")


def _explain(found: Audit, series: Series, only: frozenset[str] | None = None) -> list[Explanation]:
    """What gives the recorded numbers of one quantity."""
    what, precision = series.what, found.claim.precision
    if what.startswith("metrics."):
        known = explain_metric(_again(found, series), what.removeprefix("metrics."), precision, only)
        known = known or list(by_call_before(series, found.trace, found.claim, found.ledger))
        known = [one for one in known if only is None or one.name in only]
        return known or ([] if only else list(by_multiple(series)))
    if what == "gradient":
        if only is None and (lost := list(by_no_gradient(series, _again(found, series)))):
            return lost
        return explain_gradient(_again(found, series), precision, only)
    if what != "loss":
        return []
    right_ones = _again(found, series, right=True) if series.here_and_there else ()
    return explain_loss(_again(found, series), precision, found.trace, right_ones)


def _refined(found: Audit, series: dict[str, Series], explained: list[Explanation]) -> list[Explanation]:
    """Of several explanations those that give the gradient and the metrics too, as far as any does."""
    for what in list(series)[1:]:
        if len(explained) < 2:
            break
        also = {one.name for one in _explain(found, series[what], frozenset(one.name for one in explained))}
        explained = [one for one in explained if one.name in also] or explained
    return explained


def _folded(found: Audit, series: dict[str, Series], primary: Series, explained: list[Explanation]) -> list[Series]:
    """The series that have the same cause: the same explanation gives them, or they differ only where the primary one does."""
    if primary.what.startswith("metrics.") and not explained:
        return []
    names = frozenset(one.name for one in explained[:1])
    places = {(one.step, one.rank, one.microbatch) for one in primary.kept}
    told = []
    for one in series.values():
        if one is primary:
            continue
        same = {(other.step, other.rank, other.microbatch) for other in one.kept} <= places
        structural = not one.what.startswith("metrics.")
        if structural or same or (names and _explain(found, one, names)):
            told.append(one)
    return told


def _again(found: Audit, series: Series, *, right: bool = False) -> list[Recomputed]:
    """The micro-batches that differ, read once more; or those whose losses are right, from the first step on that differs."""
    wanted = {(one.step, one.rank, one.microbatch) for one in series.kept}
    parts: list[Recomputed] = []
    steps = (
        [index for index in found.trace.indices if index >= series.since]
        if right
        else {one.step for one in series.kept}
    )
    for index in sorted(steps)[:8]:
        audited = audit_step(found.trace.step(index), found.claim, found.ledger.again())
        parts += [one for one in audited.parts if ((index, one.part.rank, one.part.microbatch) in wanted) is not right]
    return [one for one in parts if one.part.loss is not None and _is_right(one, found)] if right else parts


def _is_right(one: Recomputed, found: Audit) -> bool:
    """Whether a loss is what is claimed and large enough to tell."""
    assert one.part.loss is not None
    off, tolerance = abs(one.part.loss - one.expected), one.truth.tolerance(found.claim.precision, one.normalizer)
    return off <= tolerance and abs(one.expected) > TELLING * tolerance


def _explain_advantages(found: Audit, bad: list[Rollout]) -> list[Explanation]:
    claimed = found.claim.advantages or {}
    for name, settings, mutant in candidates(claimed):
        try:
            if fits(bad[:6], settings, found.claim.precision, mutant):
                if mutant is not None:
                    return [from_mutant(mutant)]
                rule = "advantage." + name.split()[0]
                clause = "GSPO-ADV-2" if "ddof" in name or "eps" in name else "GSPO-ADV-1"
                return [Explanation(rule, clause, f"they are those of {name}")]
        except NotComputable:
            continue
    if local(bad[:6], claimed, found.claim.precision):
        return [from_mutant(find("distribution.local-statistics"))]
    return list(rearranged(bad[:6], claimed, found.claim.precision))


def _finding(rule: str, series: list[Series], explained: list[Explanation], like: str = "") -> Finding:
    """The first series in numbers, the others by name; what it is `like` where nothing explains it."""
    first, *rest = series
    worst, since = first.worst, min(one.since for one in series)
    assert worst is not None
    told = f"{_what(first)} since step {since}, in {first.different:,} of {plural(first.compared, 'comparison')}"
    told += f"{first.only}{_too(rest)}; at worst {_numbers(worst)}"
    if not explained:
        return Finding(f"{rule}-differs", "error", first.what, told, "", "; ".join(filter(None, (NO_KNOWN, like))))
    if len({one.name for one in explained}) > MANY:
        few = ", ".join(one.name for one in explained[:4])
        told += f". {len(explained)} known deviations give these numbers, among them {few}"
        return Finding(f"{rule}-differs", "error", first.what, told, "", "more steps would tell them apart")
    cause, *others = explained
    names = ", ".join(sorted({one.name for one in others} - {cause.name})[:3])
    told += f". {_cause(cause)}"
    told += f" (on this trace the same as {names})" if names else ""
    severity = "warning" if cause.name in OTHER_DEFINITIONS else "error"
    return Finding(cause.name, severity, first.what, told, cause.clause, cause.effect, _fix(cause))


def _cause(one: Explanation) -> str:
    """`mask.shifted gives this: ...`, or what a name of this module's own stands for."""
    if _is_mutant(one):
        return f"{one.name} gives this: {uncapitalised(one.told)}"
    return f"{one.told[:1].upper()}{one.told[1:]}"


def _is_mutant(one: Explanation) -> bool:
    return "." in one.name and not one.name.startswith(("advantage.", "step."))


def _too(rest: list[Series]) -> str:
    """` (gradient, metrics.clip_fraction and 3 more too)`."""
    names = [one.what for one in rest[:3]]
    more = f" and {len(rest) - 3} more" if len(rest) > 3 else ""
    return f" ({', '.join(names)}{more} too)" if names else ""


def _what(series: Series) -> str:
    reported = " reported" if series.what.startswith("metrics.") else ""
    return (
        f"the {series.what.removeprefix('metrics.')}{reported} {'differ' if series.what == 'advantages' else 'differs'}"
    )


def _numbers(worst: Difference) -> str:
    return f"{worst.got + 0.0:.6g} where {worst.expected + 0.0:.6g} is due (off by {worst.size:.3g}, rounding explains {worst.tolerance:.1g}) at {worst.place}"


def _fix(one: Explanation) -> str:
    return f"gspo explain {one.name}" if _is_mutant(one) else FIXES.get(one.name, "")


FIXES = {
    "added-term": "set its coefficient to 0, or claim it: Objective.replace(penalty=...)",
    "advantage.clamped": "advantages as they are: the clip range bounds the step",
    "advantage.length": "advantages as they are: the loss divides by the length once, in the ratio and in its mean over the response",
    "advantage.negated": "rewards are maximised: no minus sign, no costs in place of rewards",
    "advantage.one-sign": "responses of both signs go into the loss",
    "advantage.rewards": "give the loss the advantages, not the rewards",
    "advantage.order": "take rewards, groups and advantages through every shuffle and gather together",
    "clip-two-sided-by-response": "count where the gradient is 0: s too large with A > 0, too small with A < 0",
    "coarse-record": "record what the loss saw, in float32; or say dtype in run, where the loss too has no more bits",
    "factor": "one division, by the number of responses of the whole step, and the advantages as they were recorded",
    "mask-flipped": "build the mask on the side on which the tokens are padded",
    "metric-of-before": "log what the call returned, after the call",
    "ratio-clamped": "log-ratios as they are, or the bound in the claim",
    "sampler-as-old": "score old_logp with the trainer at the start of the rollout; what the sampler says belongs in a correction",
    "token-before-counted": "a mask from the first sampled token on",
    "token-behind-counted": "a mask up to the end-of-sequence token and no further",
    "truncated-dropped": "drop them before the loss and divide by those that are left, or claim it",
}
