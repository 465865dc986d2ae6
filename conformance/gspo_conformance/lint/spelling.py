"""Keys that no reader of this trainer knows, and that resemble one that it has: a setting that was meant, and is not made."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from difflib import SequenceMatcher
from typing import Any

from ..trainers.dialect import Finding, Reading
from ..words import cut
from .configuration import Configuration

ALIKE = 0.8
MOST = 2_000
PREFIX = 7
# Settings that trainers really have, and that say nothing about the objective, for all their likeness.
ELSEWHERE = re.compile(
    r"^(val|eval|vllm|custom|mtp|chord|per_device_eval)_|_(eval|weights|fusion|overrides)$|micro_batch|(^|_)(eval|val)_|_round_in_|^rollout_rs_"
    r"|^(clip_cov_ratio|clip_ratio_c|critic_mini_batch_size|enabled?|epsilon_c|gen_batch_size|group_size|is_correction_(enable|mode|type))$"
    r"|^(level|max_length|mode|name|num_return_sequences|num_rollout|num_sample_generations|response|response_length_penalty_coef)$"
    r"|^(type|upper_bound|use_opd|weight_type)$"
)


def misspelt(settings: Mapping[str, Any], reading: Reading) -> list[Finding]:
    """A finding for every unknown key that resembles a known one which the configuration does not set."""
    known = {_plain(key): key for key in reading.settings}
    given = {_plain(key) for key in reading.given}
    told = {one.key for one in reading.findings}
    free = [key for key in known if key not in given]
    unknown = [key for key in settings if key not in told and not _known(_plain(key), known, given)]
    pairs = ((key, _meant(_plain(key), free)) for key in unknown[:MOST])
    return [_finding(key, known[meant], settings[key], reading) for key, meant in pairs if meant]


def repeated(configuration: Configuration) -> list[Finding]:
    """A finding for every key that stands twice, in a YAML file or in calls of one configuration: one of the values counts, and nobody says which."""
    return [
        Finding(
            rule="repeated-key",
            severity="warning",
            key=key,
            message=f"the key {cut(key)} stands in line {line} too; the last value is taken here, as most readers do without a word, and some refuse the file",
            fix="keep one of them",
        )
        for key, line in list(configuration.repeated.items())[:MOST]
    ]


def _plain(key: str) -> str:
    return key.lower().removeprefix("init_hp.")


def _known(key: str, known: Container[str], given: Iterable[str]) -> bool:
    """Whether a dialect has read it, as it is or as the end of a longer key; or whether it is known to be something else."""
    last = key.rpartition(".")[2]
    read = key in known or any(one.endswith(f".{key}") for one in given)
    return read or ELSEWHERE.search(last) is not None


def _meant(key: str, free: Iterable[str]) -> str:
    """The key of which this one has all words but one or two, or that is spelt almost so in the same place."""
    parent, _, last = key.rpartition(".")
    words = Counter(re.split(r"[._]", key))
    wider = [
        (one.rpartition(".")[2] != last, extra, one)
        for one in free
        if (extra := _left_out(words, Counter(re.split(r"[._]", one)))) <= 2
    ]
    nearest = [one for *order, one in wider if order == [*min(wider)[:2]]]
    if len(nearest) == 1 and words.total() > 1:
        return nearest[0]
    same = [one for one in free if not parent or one.rpartition(".")[0] == parent]
    alike = max(((_likeness(last, one.rpartition(".")[2]), one) for one in same), default=(0.0, ""))
    return alike[1] if alike[0] >= ALIKE else ""


def _left_out(words: Counter[str], whole: Counter[str]) -> int:
    """How many words of `whole` are not among `words`; many where `words` has others."""
    return (whole - words).total() if words < whole and list(words)[-1] == list(whole)[-1] else 99


def _likeness(word: str, known: str) -> float:
    shorter, longer = sorted((word, known), key=len)
    if len(shorter) >= PREFIX and longer.startswith(f"{shorter}_"):
        return 0.9
    matcher = SequenceMatcher(None, word, known)
    return matcher.ratio() if matcher.quick_ratio() >= ALIKE else 0.0


def _finding(key: str, meant: str, value: Any, reading: Reading) -> Finding:
    return Finding(
        rule="unknown-key",
        severity="warning",
        key=key,
        message=f"{key} is no setting of {reading.trainer} {reading.version} that is known here; {meant} is",
        consequence=f"{meant} keeps {reading.settings[meant]!r}",
        fix=f"{meant}={value}",
    )
