"""Known failures of the trainers: every file speaks of a version, every line says why."""

from __future__ import annotations

import pytest

from gspo_conformance.suite import known_failures
from gspo_conformance.trainers.room import VARIANTS, Room, choose, rooms


def _names(room: Room) -> set[str]:
    versions = {f"{version}-{variant}" if variant else version for version in room.versions for variant in VARIANTS}
    return versions | {variant or "claims" for variant in VARIANTS}


@pytest.mark.parametrize("room", rooms().values(), ids=lambda room: room.name)
def test_every_line_says_why(room: Room) -> None:
    for path in sorted((room.folder / "known").glob("*.txt")):
        assert path.stem in _names(room), path
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        assert all(line.partition("#")[2].strip() for line in lines), path


def test_a_check_of_a_trainer_expects_its_own_list() -> None:
    assert {entry.pattern for entry in known_failures(None, "roll").entries} >= {"advantage/scale-only"}
    assert not known_failures(None, "numpy").entries


def test_a_version_may_come_from_a_checkout_and_another_not() -> None:
    assert choose("areal@981e3f68").version.source
    assert not choose("areal@1.0.4").version.source
    assert choose("roll").version.source == choose("roll").room.source
