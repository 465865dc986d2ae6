"""Arrays and expected values on disk: exact both ways, strict JSON, more digits than float64."""

import json
from fractions import Fraction

import numpy as np
import pytest

from gspo_conformance.formats import AREAS, Expected, load_vectors, vector_from_json
from gspo_conformance.tensors import (
    canonical,
    decode_array,
    decode_float,
    encode_array,
    encode_float,
    read_tensors,
    tensor_bytes,
)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, 3e-4, 2.0**-149, -1.7976931348623157e308, np.pi, np.inf, -np.inf])
def test_a_float_survives_its_hexadecimal_text(value):
    assert decode_float(encode_float(value)) == value


def test_a_number_too_large_for_its_dtype_is_refused(tmp_path):
    with pytest.raises(ValueError, match="data: expected numbers of float32, got one that overflows"):
        decode_array({"dtype": "float32", "shape": [1], "data": ["0x1.0p+200"]}, tmp_path)


def test_nan_is_a_word_and_trailing_zeros_are_not_written():
    assert encode_float(np.nan) == "nan"
    assert np.isnan(decode_float("nan"))
    assert encode_float(0.5) == "0x1.0p-1"
    assert encode_float(0.75) == "0x1.8p-1"


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.array([[0.5, np.nan], [-np.inf, 2.0**-20]]), "float32"),
        (np.array([1e-300, np.pi]), "float64"),
        (np.array([[True, False]]), "bool"),
        (np.array([-7, 0, 2**40]), "int64"),
        (np.zeros((0, 3)), "float32"),
        (np.repeat([-1.5, -0.25], 600).reshape(2, 600), "float32"),
    ],
)
def test_an_array_survives_json(values, dtype, tmp_path):
    entry = json.loads(canonical(encode_array(values, dtype)))
    again = decode_array(entry, tmp_path)
    assert again.dtype == dtype
    assert again.shape == values.shape
    np.testing.assert_array_equal(again, values)


def test_long_runs_are_counted_not_repeated():
    entry = encode_array(np.full((2, 512), -1.5), "float32")
    assert entry["runs"] == [["-0x1.8p+0", 1024]]
    assert "data" not in entry


def test_narrow_storage_decodes_to_float32_and_cannot_be_written(tmp_path):
    again = decode_array(encode_array(np.array([1.5, -0.25]), "bfloat16"), tmp_path)
    assert again.dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        again[0] = 0.0


def test_large_arrays_live_in_a_file_whose_bytes_depend_on_nothing(tmp_path):
    arrays = {"logp": np.arange(6, dtype=np.float32).reshape(2, 3), "old_logp": np.ones(4)}
    raw = tensor_bytes(arrays)
    assert raw == tensor_bytes(dict(reversed(arrays.items())))
    (tmp_path / "x.safetensors").write_bytes(raw)
    again = read_tensors(tmp_path / "x.safetensors")
    assert {name: array.dtype for name, array in again.items()} == {"logp": np.float32, "old_logp": np.float64}
    np.testing.assert_array_equal(again["logp"], arrays["logp"])
    entry = {"dtype": "float32", "shape": [2, 3], "file": "x.safetensors", "key": "logp"}
    np.testing.assert_array_equal(decode_array(entry, tmp_path), arrays["logp"])


def test_safetensors_reads_what_is_written(tmp_path):
    from safetensors.numpy import load_file

    arrays = {"a": np.arange(5, dtype=np.float32), "b": np.ones((2, 2))}
    (tmp_path / "x.safetensors").write_bytes(tensor_bytes(arrays))
    for name, array in load_file(tmp_path / "x.safetensors").items():
        np.testing.assert_array_equal(array, arrays[name])


def test_the_error_of_a_float64_answer_is_right_to_its_last_bit():
    expected = Expected({"value": "0.333333333333333333333333333333", "scale": "1"})
    got = np.float64(1 / 3)
    exact = abs(Fraction(float(got)) - Fraction(333333333333333333333333333333, 10**30))
    assert expected.error(got) == pytest.approx(float(exact), rel=1e-6)
    assert expected.value == 1 / 3


def test_one_scale_stands_for_all_elements_and_exactness_has_none():
    expected = Expected({"value": ["1", "2"], "scale": "0.5"})
    assert expected.scale.tolist() == [0.5, 0.5]
    assert expected.compare == ("scale", 16)
    decisions = Expected({"value": [1, 0], "compare": {"rule": "exact", "k": 0}})
    assert decisions.scale.tolist() == [0, 0]
    assert decisions.value.tolist() == [1, 0]


def test_expected_values_may_be_runs():
    expected = Expected({"value": {"shape": [2, 3], "runs": [["0.5", 4], ["0", 2]]}, "scale": "1"})
    assert expected.value.tolist() == [[0.5, 0.5, 0.5], [0.5, 0.0, 0.0]]
    assert expected.text is None


def test_canonical_json_is_strict_and_stable():
    value = {"a": [1, 2], "b": [[1], [2]], "c": {}, "d": {"e": "ε"}}
    text = canonical(value)
    assert json.loads(text) == value
    assert canonical(json.loads(text)) == text
    assert '"a": [1, 2]' in text
    with pytest.raises(ValueError, match="JSON"):
        canonical({"a": float("nan")})


def test_a_vector_decodes_its_inputs_and_names_its_outputs():
    vector = next(vector for vector in load_vectors("distribution") if vector.operation == "step")
    assert vector.area == "distribution"
    assert {"logp", "old_logp", "mask"} <= vector.inputs["parts"][0].keys()
    assert vector.outputs[0] == "loss"
    assert all(name.startswith("gradient.") for name in vector.outputs[1:])
    again = vector_from_json(vector.raw, vector.folder)
    assert again == vector


def test_a_vector_that_refuses_names_the_argument_and_has_no_truth():
    vector = next(vector for vector in load_vectors("packing") if vector.refuses)
    assert vector.refuses == "offsets"
    assert vector.outputs == ("loss",)
    assert vector.expected == {}


def test_an_unknown_area_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="stop-gradient"):
        load_vectors("gradients")
    assert {vector.area for vector in load_vectors()} == set(AREAS)
