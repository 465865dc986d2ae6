"""How vectors are made: cases, recipes, assembly, and a sample of them made again bit for bit."""

import json

import numpy as np
import pytest

from gspo_conformance.build.areas import all_recipes
from gspo_conformance.build.assemble import assemble, check_exact, compact, decimal_text, requirements
from gspo_conformance.build.cases import explicit, log_ratios, packed, padded, responses, uniform
from gspo_conformance.build.recipe import Recipe, call, correction, gspo, gspo_token, loss, objective, penalty
from gspo_conformance.build.regenerate import assemble_by_id, check, regenerate, render, vector_text
from gspo_conformance.build.schemas import violations
from gspo_conformance.formats import VECTORS, load_vectors
from gspo_conformance.manifest import MANIFEST, manifest_text

RECIPES = [recipe.id for recipe in all_recipes()]
SAMPLE = [id_ for id_ in RECIPES if not id_.startswith(("numerics/accumulator", "numerics/drift", "numerics/long"))][
    ::17
]


def test_every_recipe_has_a_file_and_every_file_a_recipe():
    files = {path.relative_to(VECTORS).as_posix().removesuffix(".json") for path in VECTORS.glob("*/*.json")}
    assert files == set(RECIPES)


@pytest.mark.parametrize("id_", SAMPLE)
def test_a_vector_is_made_again_bit_for_bit(id_):
    assert vector_text(assemble_by_id(id_)) == (VECTORS / f"{id_}.json").read_text("utf-8")


def small(tmp_path, monkeypatch, ids=("ratio/token-ragged", "sampling/bounds")):
    """A suite of two vectors, written by its own command."""
    recipes = [recipe for recipe in all_recipes() if recipe.id in ids]
    monkeypatch.setattr("gspo_conformance.build.regenerate.all_recipes", lambda: recipes)
    regenerate(tmp_path, jobs=1)
    return tmp_path


def test_regenerating_writes_what_differs_and_removes_what_no_recipe_makes(tmp_path, monkeypatch):
    root = small(tmp_path, monkeypatch)
    assert check(root, jobs=1) == []
    path = root / "ratio" / "token-ragged.json"
    path.write_text(path.read_text("utf-8").replace("Unequal", "unequal"), encoding="utf-8")
    (root / "ratio" / "by-hand.json").write_text("{}", encoding="utf-8")
    assert check(root, jobs=1) == ["ratio/by-hand.json", "ratio/token-ragged.json"]
    assert regenerate(root, jobs=1) == ["ratio/by-hand.json", "ratio/token-ragged.json"]
    assert check(root, jobs=1) == []


def test_two_processes_make_what_one_makes():
    ids = ["sampling/bounds", "sampling/negative", "ratio/one-token", "reward/overlong"]
    assert render(ids, jobs=2) == render(ids, jobs=1)


def test_the_manifest_is_that_of_the_files():
    files = [path for path in VECTORS.glob("*/*") if path.is_file()]
    text = manifest_text({path.relative_to(VECTORS).as_posix(): path.read_bytes() for path in files})
    assert (VECTORS / MANIFEST).read_text("ascii") == text


def test_log_ratios_have_the_mean_that_was_asked_for():
    for length, mean, spread, quantum in [
        (7, 3e-4, 0.05, 2.0**-20),
        (64, -1e-3, 0.25, 2.0**-6),
        (1, 0.5, 0.1, 2.0**-20),
    ]:
        made = log_ratios("test", length, mean, spread, quantum)
        assert abs(made.mean() - mean) <= quantum / length
        assert np.all(made / quantum == np.round(made / quantum))
        assert np.abs(made).max() <= 2.5 * spread + abs(mean) + quantum
    assert log_ratios("test", 0, 0.1, 0.1).shape == (0,)


def test_draws_depend_on_their_name_alone():
    np.testing.assert_array_equal(uniform("a", 5, -1, 1), uniform("a", 5, -1, 1))
    assert uniform("a", 5, -1, 1).tolist() != uniform("b", 5, -1, 1).tolist()
    assert responses("a", [3, 2], [0.0, 0.1]).rows["logp"][1].max() < 0


def test_layouts_hold_the_same_tokens():
    source = explicit([[0.5, -0.25], [0.125], []]).also(advantages=[1.0, 2.0, 3.0])
    rows = padded(source, fill={"logp": 7.0}, masks="011 100 000")
    row = packed(source, trailing=1)
    np.testing.assert_array_equal(rows["logp"], [[7, -1.5, -2.25], [-1.875, 7, 7], [7, 7, 7]])
    np.testing.assert_array_equal(row["logp"], [-1.5, -2.25, -1.875, 0])
    np.testing.assert_array_equal(row["offsets"], [0, 2, 3, 3])
    np.testing.assert_array_equal(rows["logp"][rows["mask"]], row["logp"][:3])


@pytest.mark.parametrize(
    ("value", "dtype"), [(0.1, "float32"), (1 + 2.0**-8, "bfloat16"), (1 + 2.0**-11, "float16"), (1e39, "float32")]
)
def test_an_input_that_its_dtype_cannot_hold_is_an_error_that_says_where(value, dtype):
    check_exact("logp", np.array([np.nan, np.inf, 1.0]), dtype)
    with pytest.raises(ValueError, match=f"logp: expected numbers exact in {dtype}, got .* at 1"):
        check_exact("logp", np.array([0.5, value]), dtype)


BATCH = explicit([[0.25, -0.25], [0.5, 0.0]]).also(advantages=[1.0, -1.0])


@pytest.mark.parametrize(
    ("case", "needs"),
    [
        (loss(gspo(), padded(BATCH)), []),
        (loss(gspo(), padded(BATCH), ("gradient",)), ["gradient"]),
        (loss(gspo(), packed(BATCH), ("metrics.num_tokens",)), ["packed", "metrics"]),
        (loss(gspo(), padded(BATCH), dtype=("float32",), input_dtype="bfloat16", normalizer=4.0), ["bfloat16", "normalizer"]),
        (loss(gspo(), padded(BATCH), dtype=("float64",)), ["float64"]),
        (loss(objective(log_ratio_cap=2.0, penalty=penalty(), correction=[correction("token", "mask")]), padded(BATCH)), ["penalty", "correction", "cap"]),
        (loss(gspo_token(), padded(explicit([[0.5, 0.5]]).tokens(token_advantages=[[1.0, 0.0]]))), ["token_advantages"]),
    ],
)  # fmt: skip
def test_what_a_target_must_be_able_to_do_is_read_off_the_case(case, needs):
    assert requirements(case) == needs


def test_what_is_assembled_is_a_vector():
    recipe = Recipe("ratio/test", "A test of the assembly", ("GSPO-RATIO-1",), ("ratio-one",), lambda: call("ratio", padded(explicit([[0.5]])), "ratio", kind="token"))  # fmt: skip
    made = assemble(recipe).raw
    assert list(violations("vector", made)) == []
    assert made["expected"]["ratio"]["value"][0][0].startswith("1.6487212707001281468486507878")
    assert json.loads(json.dumps(made, allow_nan=False)) == made


def test_long_sequences_are_granted_more_and_large_arrays_go_to_a_file():
    vector = next(vector for vector in load_vectors("numerics") if vector.id == "numerics/long-gspo")
    assert vector.expected["loss"].compare.k == 64
    assert vector.raw["inputs"]["logp"]["file"] == "long.safetensors"
    assert vector.inputs["logp"].shape == (2, 32768)
    assert vector.expected["gradient"].value.shape == (2, 32768)


def test_numbers_as_text():
    assert decimal_text(0) == "0"
    assert decimal_text(True) == 1
    assert decimal_text(-2.5) == "-2.5"
    assert decimal_text(float("inf")) == "+inf".removeprefix("+")
    assert compact([[0.5, 0.5], [0.5, 0.5]], decimal_text, fold=True) == "0.5"
    assert compact([[0.5, 1.0], [0.5, 2.0]], decimal_text, fold=True) == [["0.5", "1"], ["0.5", "2"]]
    assert compact([1.0] * 300, decimal_text) == {"shape": [300], "runs": [["1", 300]]}
    assert compact([[], []], decimal_text) == [[], []]
