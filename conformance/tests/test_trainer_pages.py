"""Records of trainers' runs and the pages made of them: what a record says of a wrong loss, and that the pages show it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gspo_conformance.connection import InProcess
from gspo_conformance.known import KnownFailure, KnownFailures
from gspo_conformance.resolve import load
from gspo_conformance.runner import Options, run_vectors
from gspo_conformance.suite import vectors
from gspo_conformance.trainers import badge, pages, records
from gspo_conformance.trainers.room import rooms

DOCS = Path(__file__).resolve().parents[2] / "docs"
REASON = "by design: sums tokens and divides by all of them (https://example.org/o/r/issues/7)"
KNOWN = KnownFailures((KnownFailure("*", REASON),))


class TokenMean:
    """The core under the mean over all tokens, whatever the objective says."""

    name = "token-mean"

    def __init__(self) -> None:
        self.inner = load("numpy")
        self.version, self.capabilities = self.inner.version, self.inner.capabilities

    def run(self, case: Any) -> Mapping[str, Any]:
        objective = dict(case.parameters["objective"])
        objective["aggregation"] = {"mode": "token_mean", "count": "all", "constant": 1.0}
        wrong = type(case)(
            case.operation,
            {"objective": objective},
            case.inputs,
            case.dtype,
            case.outputs,
            case.input_dtype,
            case.id,
        )
        return self.inner.run(wrong)


@pytest.fixture(scope="module")
def variant() -> dict[str, Any]:
    chosen = vectors(records.REFERENCE)
    run = run_vectors(InProcess(TokenMean(), "token-mean"), chosen, Options(known=KNOWN))
    return records.variant(run, KNOWN)


def test_a_record_has_the_weight_of_every_response(variant: dict[str, Any]) -> None:
    factors = variant["factors"]
    lengths = np.asarray(factors["lengths"])
    mask = vectors(records.REFERENCE)[0].inputs["mask"]
    np.testing.assert_allclose(factors["gradient"], lengths * len(mask) / np.count_nonzero(mask), rtol=1e-3)
    assert factors["leaks"] == []


def test_a_record_sums_up_causes_by_their_worst_vector(variant: dict[str, Any]) -> None:
    (cause,) = variant["causes"]
    assert (cause["reason"], cause["vectors"], cause["areas"]) == (REASON, 1, ["aggregation"])
    assert cause["worst"]["id"] == records.REFERENCE
    assert 0.1 < cause["worst"]["relative"] < 10
    assert variant["as_expected"]
    assert variant["gspo_must"]["passed"] == 0
    assert variant["gspo_must"]["deviating"] == variant["all"]["deviating"] == len(variant["areas"]) * 2


def test_the_pages_are_those_of_the_records() -> None:
    for name, text in pages.pages().items():
        path = DOCS / "trainers" / name
        assert path.is_file(), f"{name}: run `gspo trainers pages --out docs/trainers`"
        assert path.read_text(encoding="utf-8") == text, f"{name}: run `gspo trainers pages --out docs/trainers`"


def test_every_room_was_run_and_went_as_it_says() -> None:
    for room in rooms().values():
        for version in room.versions.values():
            record = records.load(room, version)
            assert record is not None, f"no record: run `gspo trainers record {room.name}@{version.name}`"
            for name in ("claims", "default"):
                assert record[name]["as_expected"], (room.name, version.name, name, record[name]["unexpected"])


@pytest.mark.parametrize("room", rooms().values(), ids=rooms())
def test_a_badge_is_an_image_with_words(room: Any) -> None:
    for record in filter(None, (records.load(room, version) for version in room.versions.values())):
        svg = badge.badge(room.title, record)
        assert re.search(r"<title>GSPO · .+: .+</title>", svg)
        assert badge.verdict(record)[1] in svg


def test_a_page_begins_with_what_its_trainer_computes() -> None:
    """Hunts a page whose answer stands behind a screen of facts."""
    for room in rooms().values():
        title, _, answer, *_ = pages.trainer(room, pages._records(room)).splitlines()
        assert title == f"# {room.title}"
        assert re.match(rf"\*\*{re.escape(room.title)} \S+\*\*.+; as it comes it agrees in \d+ of \d+\.", answer)


def test_names_of_programs_are_code_and_symbols_are_not() -> None:
    text = "algorithm.loss_agg_mode is unset (_compute_gae): beta=0.0 where y_i, 0.04 or a_1"
    linked = pages._linked(text)
    assert linked == "`algorithm.loss_agg_mode` is unset (`_compute_gae`): `beta=0.0` where y_i, 0.04 or a_1"


def test_addresses_become_links_and_bars_do_not_end_cells() -> None:
    linked = pages._linked("a|b (https://github.com/o/r/pull/12); more https://example.org/x")
    assert linked == "a\\|b ([pull request 12](https://github.com/o/r/pull/12)); more [source](https://example.org/x)"
