"""The verdict: one sentence, how sure it is, and who else comes near."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..formats import Vector, load_vectors
from ..mutants.atlas import Atlas
from ..mutants.bench import bench
from ..mutants.dialects import DIALECTS, Dialect
from ..mutants.registry import mutants
from ..run import Result, Run
from ..words import plural, uncapitalised
from .clips import CLIPPED_FROM, MOST, UNASKED
from .constants import Constants, Unlisted
from .evidence import REFUSED, Evidence, evidence_of
from .objectives import objectives
from .patterns import CUT, TRAITS, factor_text, factors, is_paper, observed
from .settings import WHERE
from .suspects import Search, Suspect
from .terms import added

NOUNS = {
    "policy_loss": "loss",
    "step": "loss",
    "pipeline": "loss",
    "ratio": "ratio",
    "clipped_surrogate": "surrogate",
    "aggregate": "aggregate",
    "kl_penalty": "penalty",
    "clip_rewards": "rewards",
    "normalize_rewards": "rewards",
    "token_kl_rewards": "rewards",
    "soft_overlong_penalty": "rewards",
    "informative_groups": "groups to keep",
}
SURE = 0.985
NAMED = 0.5
MENTIONED = 0.3
BEGUN = 0.1
SAID = 4
FEW = 4
ODD = 0.3
# What these say of what follows is said of the paper's ratio and range.
OF_PAPER = ("ratio", "clip")
MASKS = "where there are"


@dataclass(frozen=True)
class Diagnosis:
    """`suspect` is None where nothing known answers like this; `observed` says what was seen, whoever did it."""

    sentence: str
    suspect: Suspect | None
    equivalents: tuple[str, ...] = ()
    runners_up: tuple[Suspect, ...] = ()
    dialects: tuple[str, ...] = ()
    observed: tuple[str, ...] = ()
    gradient_factors: tuple[float, float] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The mutants that are named."""
        parts = () if self.suspect is None else self.suspect.named
        return tuple(part.name for part in parts if not isinstance(part, Unlisted))

    @property
    def confidence(self) -> float:
        """The share of the discriminating answers that is explained."""
        return 0.0 if self.suspect is None else self.suspect.share

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, for reports."""
        suspect = self.suspect
        return {
            "sentence": self.sentence,
            "mutants": list(self.names),
            "clauses": [] if suspect is None else list(dict.fromkeys(part.clause for part in suspect.named)),
            "links": [] if suspect is None else [link for part in suspect.named for link in part.links],
            "effect": "" if suspect is None else "; ".join(part.effect for part in suspect.named if part.effect),
            "confidence": self.confidence,
            "explained": 0 if suspect is None else suspect.explained,
            "of": 0 if suspect is None else suspect.of,
            "equivalents": list(self.equivalents),
            "runners_up": [{"mutants": other.name, "confidence": other.share} for other in self.runners_up],
            "dialects": list(self.dialects),
            "observed": list(self.observed),
            "gradient_factors": None if self.gradient_factors is None else list(self.gradient_factors),
        }


def diagnose(run: Run, vectors: Iterable[Vector] | None = None) -> Diagnosis | None:
    """Who answers like this target; None where every answer was right, or nothing was answered.

    Where all answers together fit nobody, those that the run is judged by are looked at alone: a target
    may have one mistake and conventions of its own beside it. A few conventions alone are no mistake.
    Where that fits nobody either, its functions are looked at one by one.
    """
    everything, own = load_vectors(), [] if vectors is None else list(vectors)
    atlas = atlas_of(everything if {*map(id, own)} <= {*map(id, everything)} else own)
    evidence = evidence_of(run, atlas)
    judged = [item for item in evidence if item.result is None or run.counts_for_exit(item.result)]
    found = _whole(run, evidence, judged, atlas)
    if found is None or found.suspect:
        return found
    told = _by_function(evidence if all(item.right for item in judged) else judged, atlas)
    return replace(found, sentence=f"{found.sentence}; {told}") if told else found


def _whole(run: Run, evidence: list[Evidence], judged: list[Evidence], atlas: Atlas) -> Diagnosis | None:
    whole = diagnose_evidence(evidence, atlas)
    if whole is None or whole.confidence == 1:
        return whole
    part = diagnose_evidence(judged, atlas)
    if part is None:
        return whole if whole.suspect or sum(not item.right for item in evidence) > ODD * len(evidence) else None
    if part.suspect or not whole.suspect:
        return part if part.confidence >= whole.confidence else whole
    missed = [item for item in judged if not item.right]
    if any(Search(atlas, missed).explains(whole.suspect.parts, item) for item in missed):
        return whole
    apart = {item.question for item in missed}
    below = diagnose_evidence([item for item in evidence if item.question not in apart], atlas) or whole
    return replace(part, sentence=f"{part.sentence}; below {run.level}, {below.sentence}")


def _by_function(evidence: Sequence[Evidence], atlas: Atlas) -> str:
    """Who is known in the answers of one function alone, where several have mistakes; one wrong answer fits many."""
    functions: dict[str, list[Evidence]] = {}
    for item in evidence:
        case = atlas.bench.questions[item.question].case
        ratio = (case.objective or {}).get("ratio")
        functions.setdefault(f"losses of {ratio} ratios" if ratio else case.operation, []).append(item)
    wrong = {name: sum(not item.right for item in items) for name, items in functions.items()}
    if sum(map(bool, wrong.values())) < 2:
        return ""
    told: list[str] = []
    for name in sorted(functions, key=lambda name: -wrong[name]):
        found = diagnose_evidence(functions[name], atlas) if wrong[name] > 1 else None
        if found is not None and (best := found.suspect):
            some = "" if best.share >= SURE else f", {best.explained} of {best.of} answers"
            told.append(f"{name} as {_names(best)}{some}")
    return f"by function, {', '.join(told[:SAID])}" if told else ""


def diagnose_evidence(evidence: Sequence[Evidence], atlas: Atlas) -> Diagnosis | None:
    """`diagnose` for answers that are at hand."""
    if all(item.right for item in evidence):
        return None
    search = Search(atlas, evidence)
    suspects = _suspects(search) if _answers(evidence) else []
    while suspects and not _credible(search, suspects[0]):
        suspects.pop(0)
    span = factors(evidence, atlas)
    seen = (*_rounded(search), *observed(evidence, atlas))
    if not suspects or suspects[0].share <= NAMED or _contradicted(suspects[0], seen):
        return Diagnosis(_unknown(search, seen, suspects), None, (), tuple(suspects[:3]), (), seen, span)
    best = suspects[0]
    level = [item for item in suspects[1:] if (item.explained, item.of) == (best.explained, best.of)]
    alike = _alike(best, level)
    others = tuple(item for item in suspects[1:] if item not in level and item.share >= MENTIONED)[:3]
    known = tuple(dialect.name for dialect in DIALECTS if set(dialect.names) == {part.name for part in best.named})
    tail = [
        _range(best, seen),
        factor_text(span),
        f"as in {known[0]}" if known else "",
        _undecided(alike),
        _left(search, best),
        *_rounded(search),
        *(text for text in seen if CUT in text or (best.share < SURE and text.startswith(WHERE))),
    ]
    paper = any(not item.right and is_paper(item, atlas) for item in evidence)
    told = "; ".join(text for text in (_named(best, _noun(evidence, atlas), paper), *tail) if text)
    return Diagnosis(told, best, alike, others, known, seen, span)


def _credible(search: Search, suspect: Suspect) -> bool:
    """Whether each of several mistakes adds as many answers as it leaves wrong of those that it moves."""
    if len(suspect.named) == 1 or suspect.share >= SURE:
        return True
    missed = search.missed(suspect.parts, search.evidence)
    for part in suspect.named:
        others = tuple(other for other in suspect.parts if other is not part)
        gained = [item for item in search.missed(others, search.evidence) if item not in missed]
        if len(gained) < sum(search.atlas.active(part, item.question) for item in missed):
            return False
    return True


def _alike(best: Suspect, level: Sequence[Suspect]) -> tuple[str, ...]:
    """Who explains as much by as many mistakes, in whatever order they are put together."""
    told = {frozenset(part.name for part in best.named): best.name}
    for item in level:
        if len(item.named) == len(best.named):
            told.setdefault(frozenset(part.name for part in item.named), item.name)
    return tuple(told.values())[1:]


def _answers(evidence: Sequence[Evidence]) -> bool:
    """Whether most of what is wrong are answers; errors say for themselves what they are."""
    wrong = [item for item in evidence if not item.right]
    return 2 * sum(item.row is REFUSED for item in wrong) <= len(wrong)


def _contradicted(suspect: Suspect, seen: Sequence[str]) -> bool:
    """Whether what was seen explains the answers better: digits that were cut off, a range that is not that of a clip that is suspected."""
    if suspect.share >= SURE:
        return False
    clips = [part.name.startswith("clip.") for part in suspect.parts if suspect.share < MOST] or [False]
    return any(
        CUT in text or (all(clips) and CLIPPED_FROM in text) or (any(clips) and UNASKED in text) for text in seen
    )


_ATLASES: dict[tuple[int, ...], Atlas] = {}


def atlas_of(vectors: Sequence[Vector]) -> Atlas:
    """One atlas for a set of vectors, shared by every run over it; it keeps its vectors, so their identity is a key."""
    key = tuple(map(id, vectors))
    if key not in _ATLASES:
        _ATLASES.clear()
        _ATLASES[key] = Atlas(bench(vectors), mutants())
    return _ATLASES[key]


def _suspects(search: Search) -> list[Suspect]:
    """Singles; where none explains everything, singles in another form, other objectives, added terms, what the best leave over; then dialects and all pairs."""
    found = _ranked(search.singles())
    if not _settled(found):
        made = (*((other,) for other in objectives()), *added(search.evidence, search.atlas))
        found = _ranked(found + search.formed() + search.combinations(made))
    if not _settled(found):
        found = _ranked(found + search.extended([suspect for suspect in found[:3] if suspect.share >= BEGUN]))
    if not _settled(found):
        found = _ranked(found + search.combinations(_parts(DIALECTS)))
    if not _settled(found):
        found = _ranked(found + search.pairs())
    return found if _settled(found) else _ranked(found + search.fitted())


def _settled(suspects: list[Suspect]) -> bool:
    """Whether the best explains everything, or several together nearly everything."""
    return bool(suspects) and suspects[0].share >= (1 if len(suspects[0].named) == 1 else SURE)


def _ranked(suspects: list[Suspect]) -> list[Suspect]:
    """By share; a further mutant must explain a hundredth more, or all that is left. Of equals, mistakes in one place, and the one seen most in public."""
    unique = {suspect.parts: suspect for suspect in suspects}
    cost = {parts: 0.0 if one.share == 1 else 0.01 * (len(parts) - 1) for parts, one in unique.items()}
    seen = {parts: sum(len(part.links) for part in parts) for parts in unique}
    return sorted(
        unique.values(),
        key=lambda one: (cost[one.parts] - one.share, len(one.parts), _places(one), -seen[one.parts], one.name),
    )


def _places(one: Suspect) -> int:
    """How many parts of the objective the mistakes are in."""
    return len({part.name.partition(".")[0] for part in one.named})


def _parts(dialects: Iterable[Dialect]) -> list[tuple[Any, ...]]:
    return [dialect.parts for dialect in dialects if len(dialect.names) > 1]


def _rounded(search: Search) -> list[str]:
    """How many answers are off by rounding; those whose form alone is wrong say so for themselves."""
    measured = [item for item in search.rounded if item.result is None or _measured(item.result)]
    steady = all(item.steady for item in measured)
    return [f"{plural(len(measured), 'answer')} off by rounding alone"] if measured and steady else []


def _measured(result: Result) -> bool:
    return all(judged.ok or judged.expected for judged in result.judged)


def _named(best: Suspect, noun: str, paper: bool) -> str:
    """What is suspected; what follows of one alone too, of ratios and ranges where they are the paper's."""
    alone = len(best.named) == 1 and (paper or best.named[0].name.partition(".")[0] not in OF_PAPER)
    told = [
        uncapitalised(text) for part in best.named for text in (part.title, part.consequence if alone else "") if text
    ]
    form = "" if best.named == best.parts else "as GSPO-token writes it, whose gradient does not pass through s: "
    verb = "returns" if best.share >= MOST else "resembles"
    return f"{verb} the {noun} of {_names(best)}: {form}{'; '.join(told)}"


def _names(suspect: Suspect) -> str:
    return " and ".join(f"`{part.name}` ({part.clause})" for part in suspect.named)


def _undecided(alike: Iterable[str]) -> str:
    names = [f"`{name}`" for name in alike][:3]
    return f"cannot be told from {', '.join(names)} by these vectors" if names else ""


def _range(best: Suspect, seen: Sequence[str]) -> str:
    """The range in force, where several mistakes about it have to be put together."""
    clips = len(best.named) > 1 and all(part.name.startswith("clip.") for part in best.named)
    return next((text for text in seen if CLIPPED_FROM in text), "") if clips else ""


def _left(search: Search, best: Suspect) -> str:
    if (best.share >= SURE and len(best.named) > 1) or best.share == 1:
        return ""
    told = _missed(search, best)
    return f"explains {best.explained} of {best.of} answers{told}" if best.share < SURE or told else ""


def _missed(search: Search, best: Suspect) -> str:
    """What the best does not explain: by name where it is little, else by the masks that it has, where hardly another answer has such."""
    left = search.missed(best.parts, search.evidence)
    named = list(dict.fromkeys(search.atlas.bench.questions[item.question].vector.id for item in left))
    if len(named) <= FEW:
        return f", not {', '.join(named)}"
    masks = [TRAITS[MASKS](item, search.atlas) for item in left]
    alike = [item for item in search.evidence if item not in left and TRAITS[MASKS](item, search.atlas) == masks[0]]
    return f", not {MASKS} {masks[0]}" if masks[0] and len({*masks}) == 1 and 4 * len(alike) <= len(left) else ""


def _noun(evidence: Sequence[Evidence], atlas: Atlas) -> str:
    """What it is that is wrong, in a word."""
    nouns: set[str] = set()
    for item in evidence:
        if not item.right:
            vector = atlas.bench.questions[item.question].vector
            metrics = bool(vector.outputs) and all(name.startswith("metrics.") for name in vector.outputs)
            nouns.add("metrics" if metrics else NOUNS.get(vector.operation, "advantages"))
    return "loss" if "loss" in nouns else nouns.pop() if len(nouns) == 1 else "answers"


def _unknown(search: Search, seen: Sequence[str], suspects: Sequence[Suspect]) -> str:
    told = ""
    # Numbers that fit some answers only are those of no setting.
    known = [one for one in suspects if not any(isinstance(part, Constants) for part in one.parts)]
    if known and known[0].share >= MENTIONED:
        near = known[0]
        told = f"nearest is `{near.name}`, {near.explained} of {near.of}{_missed(search, near)}"
    head = "unknown deviation" if _answers(search.evidence) else "too few answers to tell"
    return "; ".join(text for text in (head, *seen[:SAID], told) if text)
