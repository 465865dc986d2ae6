"""Each thing that must not happen to a vector, done to one: the lint says so."""

import json
import shutil

import pytest

from gspo_conformance.build.lint import lint
from gspo_conformance.build.regenerate import check
from gspo_conformance.flags import read_flags
from gspo_conformance.formats import VECTORS
from gspo_conformance.manifest import MANIFEST, manifest_text, verify_manifest
from gspo_conformance.tensors import canonical

IDS = ("ratio/token-ragged", "surrogate/paper-mixed-both-gspo", "sampling/bounds")


@pytest.fixture
def root(tmp_path):
    """A copy of three vectors with a manifest of their own."""
    for id_ in IDS:
        (tmp_path / id_).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(VECTORS / f"{id_}.json", tmp_path / f"{id_}.json")
    seal(tmp_path)
    return tmp_path


def seal(root):
    """Makes the manifest right again, so that what is left is found by what it is."""
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.glob("*/*")}
    (root / MANIFEST).write_text(manifest_text(files), encoding="ascii")


def problems(root, registry=None):
    """What the lint says, besides that three vectors use few flags and test few clauses."""
    found = lint(root, registry)
    return [one for one in found if "is used by no vector" not in one and "no vector tests it" not in one]


def change(root, id_, alter):
    """Alters the JSON of one vector, in the canonical form and with a right manifest."""
    path = root / f"{id_}.json"
    raw = json.loads(path.read_text("utf-8"))
    alter(raw)
    path.write_text(canonical(raw) + "\n", encoding="utf-8")
    seal(root)


def test_three_vectors_as_they_are(root):
    assert problems(root) == []


def test_flags_without_vectors_and_clauses_without_vectors(root):
    found = lint(root)
    assert "flags.json: 'token-mean' is used by no vector" in found
    assert "GSPO-AGG-1: testable, but no vector tests it" in found


@pytest.mark.parametrize(
    ("alter", "sentence"),
    [
        (lambda raw: raw["flags"].append("no-such-flag"), "unknown flag 'no-such-flag'"),
        (lambda raw: raw["clauses"].append("GSPO-SURR-99"), "unknown clause 'GSPO-SURR-99'"),
        (lambda raw: raw.update(id="surrogate/elsewhere"), "an id is the path of its file"),
        (lambda raw: raw.update(level="MAYBE", note="Neither here nor there."), "$.level"),
        (lambda raw: raw.update(level="SHOULD"), "'note' is a required property"),
        (lambda raw: raw.update(comment="by hand"), "'comment' was unexpected"),
        (lambda raw: raw["parameters"]["objective"].pop("ratio"), "'ratio' is a required property"),
        (lambda raw: raw["expected"]["loss"].update(value=0.25), "$.expected.loss.value"),
        (lambda raw: raw["expected"]["loss"].pop("scale"), "$.expected.loss"),
        (lambda raw: raw["expected"]["loss"].update(kink_margin="1e-9"), "kink margin 1e-09 below"),
        (lambda raw: raw["inputs"]["advantages"]["data"].__setitem__(0, "0x1.0000001p+0"), "expected numbers exact in float32"),
        (lambda raw: raw["inputs"]["advantages"]["data"].pop(), "inputs.advantages"),
        (lambda raw: raw["inputs"]["advantages"]["data"].__setitem__(0, "1.5"), "$.inputs"),
        (lambda raw: raw["expected"]["gradient"].update(scale=[["1"]]), "expected.gradient"),
        (lambda raw: raw["flags"].append("boundary"), "a vector on a boundary is SHOULD or MAY"),
        (lambda raw: raw["inputs"].update(logp={"dtype": "float32", "shape": [1], "file": "gone.safetensors", "key": "logp"}), "inputs.logp"),
    ],
)  # fmt: skip
def test_one_violation(root, alter, sentence):
    id_ = "surrogate/paper-mixed-both-gspo"
    change(root, id_, alter)
    (found,) = problems(root)
    assert found.startswith(f"{id_}.json: ")
    assert sentence in found


def test_an_edited_truth_is_found_by_recomputing(root, monkeypatch):
    from gspo_conformance.build.areas import all_recipes

    mine = [recipe for recipe in all_recipes() if recipe.id in IDS]
    monkeypatch.setattr("gspo_conformance.build.regenerate.all_recipes", lambda: mine)
    assert check(root, jobs=1) == []
    digit = lambda raw: raw["expected"]["loss"].update(value=raw["expected"]["loss"]["value"][:-1] + "1")  # noqa: E731
    change(root, "surrogate/paper-mixed-both-gspo", digit)
    assert "surrogate/paper-mixed-both-gspo.json" in check(root, jobs=1)


def test_a_duplicate_id(root):
    shutil.copy(root / "sampling" / "bounds.json", root / "ratio" / "bounds.json")
    seal(root)
    found = problems(root)
    assert "sampling/bounds: 2 vectors have this id" in found
    assert any(one.startswith("ratio/bounds.json: its id is 'sampling/bounds'") for one in found)


def test_a_moved_file(root):
    (root / "sampling" / "bounds.json").rename(root / "sampling" / "limits.json")
    seal(root)
    (found,) = problems(root)
    assert "its id is 'sampling/bounds'" in found


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity"])
def test_a_literal_that_is_no_json(root, literal):
    path = root / "sampling" / "bounds.json"
    path.write_text(path.read_text("utf-8").replace('"low": 0.3125', f'"low": {literal}'), encoding="utf-8")
    seal(root)
    assert problems(root) == [f"sampling/bounds.json: expected strict JSON, got the literal {literal}"]


def test_a_repeated_key(root):
    path = root / "sampling" / "bounds.json"
    path.write_text(path.read_text("utf-8").replace('"low": 0.3125', '"low": 0.25, "low": 0.3125'), encoding="utf-8")
    seal(root)
    assert problems(root) == ["sampling/bounds.json: expected every key once, got low more than once"]


def test_another_way_of_writing_the_same_json(root):
    path = root / "sampling" / "bounds.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8"))), encoding="utf-8")
    seal(root)
    (found,) = problems(root)
    assert "not in the one way this suite writes JSON" in found


def test_the_manifest_misses_changes_and_losses(root):
    (root / "sampling" / "bounds.json").unlink()
    shutil.copy(VECTORS / "sampling" / "negative.json", root / "sampling" / "negative.json")
    path = root / "ratio" / "token-ragged.json"
    path.write_text(path.read_text("utf-8").replace("Unequal", "unequal"), encoding="utf-8")
    assert verify_manifest(root) == [
        "sampling/bounds.json: in MANIFEST, but not there",
        "sampling/negative.json: there, but not in MANIFEST",
        "ratio/token-ragged.json: its SHA-256 is not the one in MANIFEST",
    ]
    assert set(verify_manifest(root)) <= set(lint(root))


def test_a_suite_without_a_manifest(root):
    (root / MANIFEST).unlink()
    assert len(verify_manifest(root)) == len(IDS)


@pytest.mark.parametrize(
    ("alter", "sentence"),
    [
        (lambda entry: entry.pop("effect"), "'effect' is a required property"),
        (lambda entry: entry["seen"].append("somewhere"), "does not match '^https://'"),
        (lambda entry: entry["clauses"].append("GSPO-SURR-99"), "unknown clause 'GSPO-SURR-99'"),
    ],
)
def test_a_broken_entry_of_the_registry(root, alter, sentence):
    registry = read_flags()
    alter(registry["token-clip"])
    (found,) = problems(root, registry)
    assert found.startswith("flags.json: ")
    assert sentence in found
