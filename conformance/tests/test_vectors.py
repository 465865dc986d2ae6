"""The committed vectors: sound, within their budget, and passed by the core on NumPy in every dtype."""

import numpy as np
import pytest

from gspo_conformance.applicability import case_of
from gspo_conformance.build.lint import lint
from gspo_conformance.build.recipe import gspo
from gspo_conformance.formats import AREAS, VECTORS, load_vectors
from gspo_conformance.judge import judge
from gspo_conformance.manifest import verify_manifest
from gspo_conformance.targets import built_in

BUDGET = 10_000_000


def test_nothing_to_say():
    assert lint() == []


def test_the_manifest_holds():
    assert verify_manifest() == []


def test_the_suite_is_large_enough_and_small_enough():
    vectors = load_vectors()
    assert len(vectors) >= 300
    assert {vector.area for vector in vectors} == set(AREAS)
    assert sum(path.stat().st_size for path in VECTORS.rglob("*") if path.is_file()) < BUDGET


def test_a_plain_function_of_the_paper_meets_many_vectors():
    plain = [
        vector
        for vector in load_vectors()
        if vector.operation == "policy_loss"
        and vector.parameters == {"objective": gspo()}
        and vector.raw["inputs"].keys() == {"logp", "old_logp", "advantages", "mask"}
        and not vector.requires
        and not vector.refuses
        and vector.level == "MUST"
    ]
    assert len(plain) >= 60


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("area", AREAS)
def test_the_core_on_numpy_passes(area):
    target = built_in("numpy")
    wrong = []
    for vector in load_vectors(area):
        for dtype in vector.dtype:
            case = case_of(vector, dtype, target.capabilities)
            if vector.refuses:
                with pytest.raises((ValueError, TypeError), match=vector.refuses):
                    target.run(case)
                continue
            wrong += [
                (vector.id, dtype, one.output, one.reason)
                for one in judge(vector, case, target.run(case))
                if not one.ok
            ]
    assert wrong == []


def test_every_clip_decision_is_clear_of_rounding_except_on_a_boundary():
    for vector in load_vectors():
        margins = [one.kink_margin for one in vector.expected.values() if one.kink_margin is not None]
        if "boundary" not in vector.flags and margins:
            assert min(margins) > 1e-5, vector.id


def test_where_the_paper_is_silent_a_note_names_the_convention():
    for vector in load_vectors():
        assert vector.level == "MUST" or vector.note, vector.id


def test_zeros_that_are_owed_exactly_have_no_tolerance():
    for vector in load_vectors("gradient"):
        if "gradient" in vector.expected:
            found = vector.expected["gradient"]
            assert np.array_equal(found.value == 0, found.scale == 0), vector.id
