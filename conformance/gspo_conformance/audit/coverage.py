"""What the trace does not hold: files that are cut, ranks and micro-batches without a record, groups that never reached a loss."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from ..tensors import NumPyArray
from ..trainers.dialect import Finding
from ..words import cut, near, plural
from .shards import HEADER, KEY, PART, RUN, Broken
from .trace import Step, Tokens, Trace

_MOST = 10_000


@dataclass
class Coverage:
    """Gathered while the steps go by."""

    gaps: list[str] = field(default_factory=list)
    steps: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    generated: dict[int, dict[int, bool]] = field(default_factory=lambda: defaultdict(dict))
    trained: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    ungrouped: set[int] = field(default_factory=set)
    begins: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))

    def add(self, step: Step, ranks: int) -> None:
        """What a step holds."""
        if len(step.ranks) < ranks and step.parts:
            absent = [rank for rank in range(min(ranks, _MOST)) if rank not in step.ranks]
            self.gaps.append(f"step {step.index} has no record of rank {', '.join(map(str, absent[:8]))}")
        for rank, missing in absent_parts(step).items():
            self.gaps.append(f"step {step.index}, rank {rank} lacks micro-batch {', '.join(map(str, missing[:8]))}")
        self._add_groups(step)

    def _add_groups(self, step: Step) -> None:
        for part in (*step.rollouts, *step.parts):
            if part.rollout is None:
                continue
            try:
                tokens = part.tokens
            except Broken:
                continue
            groups = tokens.groups
            if part.minibatch == 0 and part.kind == "loss":
                self.begins[part.rollout].add(step.index)
            if part.kind == "loss":
                self.steps[part.rollout].add(step.index)
                if groups is None:
                    self.ungrouped.add(part.rollout)
                else:
                    self.trained[part.rollout].update(np.unique(groups).tolist())
            elif groups is not None:
                known = self.generated[part.rollout]
                alive = _alive(tokens)
                for key in np.unique(groups).tolist():
                    known[key] = known.get(key, False) or bool(alive[groups == key].any())

    def twice(self) -> dict[int, list[int]]:
        """Rollouts with more than one first mini-batch, and the steps of these: two rollouts under one number."""
        return {rollout: sorted(steps) for rollout, steps in self.begins.items() if len(steps) > 1}

    def lost(self, ended: bool) -> Iterator[tuple[int, list[int], list[int]]]:
        """Rollouts with groups that no loss saw: those with something to teach, and those without. Unfinished rollouts are left out,
        and the last of a trace that was cut short tells nothing of how many steps one has.
        """
        twice, last = self.twice(), max(self.steps, default=None)
        sizes = (len(steps) for rollout, steps in self.steps.items() if ended or rollout != last)
        usual = Counter(sizes).most_common(1)
        for rollout, known in sorted(self.generated.items()):
            if (
                not usual
                or len(self.steps.get(rollout, ())) < usual[0][0]
                or rollout in self.ungrouped
                or rollout in twice
            ):
                continue
            absent = sorted(set(known) - self.trained[rollout])
            if absent:
                yield rollout, [key for key in absent if known[key]], [key for key in absent if not known[key]]


def absent_parts(step: Step) -> dict[int, list[int]]:
    """The micro-batches of each rank that their numbers leave out."""
    found: dict[int, list[int]] = {}
    for rank in step.ranks:
        numbers = {
            part.fields["microbatch"] for part in step.parts if part.rank == rank and "microbatch" in part.fields
        }
        missing = [number for number in range(min(max(numbers, default=-1), _MOST)) if number not in numbers]
        found |= {rank: missing} if missing else {}
    return found


def usual_parts(trace: Trace) -> int:
    """The number of micro-batches that a step has where none is missing; 0 where every file can be read, and none is."""
    broken = any(not one.other for one in trace.broken)
    return max((len(step.parts) for step in trace.steps()), default=0) if broken else 0


def coverage_findings(trace: Trace, coverage: Coverage) -> list[Finding]:
    """What is missing, as findings."""
    broken = [one for one in trace.broken if not one.other]
    found = [_broken(one) for one in broken[:8]]
    if len(broken) > 8:
        found.append(Finding("broken-file", "error", "", f"{len(broken) - 8} more files cannot be read"))
    found += [*_others(trace), *_contradictions(trace), *_unknown_fields(trace), *(twice := list(_replaced(trace)))]
    if coverage.gaps and not broken:
        told = f"{coverage.gaps[0]}{f', and {len(coverage.gaps) - 1} more such gaps' if len(coverage.gaps) > 1 else ''}"
        found.append(Finding("gap", "warning", "", told, "", "the loss of such a step cannot be told"))
    found += [*_steps(trace), *_ends(trace), *_twice(coverage)]
    return found if broken or twice else [*found, *_lost(list(coverage.lost(bool(trace.ends))))]


def _others(trace: Trace) -> Iterator[Finding]:
    others = [one for one in trace.broken if one.other]
    if others:
        told = f"{plural(len(others), 'file')} without a {KEY} header left out: {', '.join(one.path.name for one in others[:4])}"
        yield Finding("other-file", "warning", str(others[0].path), told)


def _contradictions(trace: Trace) -> Iterator[Finding]:
    for name, path in trace.contradictions.items():
        other = next(shard.header["run"][name] for shard in trace.shards if shard.path == path)
        keys = _unlike(trace.run[name], other)
        where = f", in {', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}" if keys else ""
        told = f"{path.name} claims another run.{name} than the files before it{where}; the first one is taken"
        yield Finding("contradiction", "warning", f"run.{name}", told, "", "one claim for the whole trace is audited")


def _unlike(one: Any, other: Any, depth: int = 2) -> list[str]:
    """The keys in which two claims differ, down to the settings of a trainer."""
    if not (depth and isinstance(one, Mapping) and isinstance(other, Mapping)):
        return []
    keys = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    return [inner for key in keys for inner in _unlike(one.get(key), other.get(key), depth - 1) or [cut(key)]]


def _unknown_fields(trace: Trace) -> Iterator[Finding]:
    """Fields that the format does not have: what a misspelt one says goes unread."""
    known = {"": HEADER, "run.": RUN, "parts.": PART}
    unknown: dict[str, str] = {}
    for shard in trace.shards:
        places = [("", shard.header), ("run.", shard.header.get("run", {}))]
        for prefix, fields in (*places, *(("parts.", part) for part in shard.header["parts"])):
            for name in fields.keys() - known[prefix]:
                unknown.setdefault(f"{prefix}{name}", near(name, known[prefix]) or "")
    for name, meant in sorted(unknown.items())[:8]:
        told = f"the format has no field {cut(name)}{f'; did you mean {meant}?' if meant else ''}"
        yield Finding("unknown-field", "warning" if meant else "note", cut(name), told, "", "what it says was not read")


def _replaced(trace: Trace) -> Iterator[Finding]:
    """Micro-batches that one folder holds twice: a run that is resumed records into another."""
    seen: dict[tuple[Any, ...], str] = {}
    found: list[str] = []
    for shard in trace.shards:
        for fields in shard.header["parts"]:
            if "microbatch" in fields and fields.get("kind") != "rollout":
                place = fields["step"], shard.header.get("rank", 0), fields["microbatch"]
                before = seen.get((shard.path.parent, *place))
                seen[shard.path.parent, *place] = shard.path.name
                if before is not None:
                    told = "step {}, rank {}, micro-batch {}".format(*place)
                    found.append(f"{told} is in {cut(before)} and again in {cut(shard.path.name)}")
    if found:
        more = f", and {plural(len(found) - 1, 'other')} as well" if len(found) > 1 else ""
        fix = "number the micro-batches of a rank from 0 in every step, and steps on from rollout to rollout"
        told = f"{found[0]}{more}: the later one is read"
        yield Finding(
            "recorded-twice", "warning", "microbatch", told, "", "what the earlier one held was not audited", fix
        )


def _alive(tokens: Tokens) -> NumPyArray:
    """Which responses have an advantage other than 0 at any token, `[S]`; all of them where none was recorded."""
    if tokens.advantages is None:
        return np.ones(tokens.number, bool)
    given = tokens.advantages != 0
    return given if len(given) == tokens.number else tokens.sums(given) > 0


def _broken(one: Broken) -> Finding:
    kind = "truncated-file" if one.reason.startswith("truncated") else "broken-file"
    return Finding(
        kind,
        "error",
        str(one.path),
        f"{one.path.name} cannot be read: {one.reason}",
        "",
        "what it held was not audited",
    )


def _steps(trace: Trace) -> Iterator[Finding]:
    """Steps that are not there, of a run that does not say it leaves some out; where most are missing, it does so."""
    indices = trace.indices
    missing = indices[-1] - indices[0] + 1 - len(indices) if indices else 0
    if not missing or missing > len(indices) or (trace.run.get("every") or 1) > 1:
        return
    first = next(index + 1 for index, after in pairwise(indices) if after > index + 1)
    more = f", nor {plural(missing - 1, 'later step')}" if missing > 1 else ""
    yield Finding("gap", "note", "", f"step {first} was not recorded{more}", "", "what it did was not audited")


def _twice(coverage: Coverage) -> Iterator[Finding]:
    for rollout, steps in sorted(coverage.twice().items())[:1]:
        told = f"rollout {rollout} begins at step {steps[0]} and again at step {steps[1]} (minibatch 0): two rollouts under one number"
        fix = (
            "count rollouts on where a run is resumed, or audit its parts apart; count minibatch on from epoch to epoch"
        )
        yield Finding("rollout-twice", "warning", "rollout", told, "", "their advantages are not compared", fix)


def _ends(trace: Trace) -> Iterator[Finding]:
    for rank, end in sorted(trace.ends.items()):
        if end["reason"] != "closed":
            told = (
                f"rank {rank} stopped recording at step {end.get('step', '?')}: {end.get('message') or end['reason']}"
            )
            yield Finding("recording-ended", "note" if end["reason"] == "budget" else "warning", "", told)
    unended = [rank for rank in trace.ranks if rank not in trace.ends]
    if trace.ends and unended:
        yield Finding(
            "cut-short", "note", "", f"{plural(len(unended), 'rank')} wrote no end mark: the run was cut short"
        )


def _lost(rollouts: list[tuple[int, list[int], list[int]]]) -> Iterator[Finding]:
    taught = [(rollout, groups) for rollout, groups, _ in rollouts if groups]
    if taught:
        rollout, groups = taught[0]
        words = f"group {', '.join(map(str, groups[:8]))} of rollout {rollout} was generated and rewarded, and is in no loss"
        words += f"; so are groups of {plural(len(taught) - 1, 'later rollout')}" if len(taught) > 1 else ""
        yield Finding(
            "dropped-group", "error", "groups", words, "GSPO-AGG-2", "what these prompts teach is lost, without a word"
        )
    silent = [len(groups) for _, _, groups in rollouts if groups]
    if silent:
        words = f"{plural(sum(silent), 'group')} of {plural(len(silent), 'rollout')} without a signal in no loss: dynamic sampling"
        yield Finding("silent-group", "note", "groups", words, "GSPO-REWARD-6")
