"""Files that mean harm: vectors, records, traces and configurations end in one short sentence, at once, and touch nothing."""

from __future__ import annotations

import json
import os
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gspo_conformance.audit.shards import Broken, read_shard
from gspo_conformance.cli import main
from gspo_conformance.formats import VECTORS, read_vector
from gspo_conformance.lint.configuration import read_configuration
from gspo_conformance.reports import render
from gspo_conformance.reports.reading import read
from gspo_conformance.tensors import decode_array, read_tensors
from gspo_conformance.words import UsageError

VECTOR = json.loads((VECTORS / "ratio" / "sequence-ragged.json").read_text(encoding="utf-8"))


def _aliases(first: str, line: str) -> str:
    names = [f"n{i}" for i in range(30)]
    return f"{names[0]}: &{names[0]} {first}\n" + "".join(
        f"{new}: &{new} {line.format(*[f'*{old}'] * 9)}\n" for old, new in pairwise(names)
    )


CONFIGURATIONS = {
    "laughs.yaml": (_aliases("{x: 1}", "{{a: {}, b: {}, c: {}}}"), "repetitions by aliases counted"),
    "laughs-in-lists.yaml": (_aliases("[x]", "[{}, {}, {}, {}]"), "repetitions by aliases counted"),
    "laughs-merged.yaml": (_aliases("{x: 1}", "{{<<: [{}, {}, {}, {}]}}"), "repetitions by aliases counted"),
    "itself.yaml": ("a: &a {b: *a}\n", "not readable as yaml"),
    "itself-in-a-list.yaml": ("a: &a [*a]\n", "not readable as yaml"),
    "object.yaml": ("a: !!python/object/apply:os.system ['touch pwned']\n", "could not determine a constructor"),
    "name.yaml": ("a: !!python/name:os.system ''\n", "could not determine a constructor"),
    "module.yaml": ("a: !!python/module:antigravity ''\n", "could not determine a constructor"),
    "new.yaml": ("!!python/object/new:type {args: [x, [], {}]}\n", "could not determine a constructor"),
    "two.yaml": ("a: 1\n---\nb: 2\n", "expected a single document"),
    "list.yaml": ("- 1\n", "expected keys and values, got a list"),
    "deep.yaml": ("a: " + "{b: " * 2000, "not readable as yaml"),
    "binary.yaml": ("a: \x00\x01\n", "not readable as yaml"),
    "date.yaml": ("a: 2001-99-99\n", "not readable as yaml"),
    "deep.json": ('{"a":' * 100_000, "not readable as json"),
    "nan.json": ('{"a": NaN}', "NaN is not JSON"),
    "exponent.json": ('{"a": 1e999}', "1e999 is beyond every float"),
    "digits.json": ('{"a": ' + "9" * 5000 + "}", "not readable as json"),
    "deep.toml": ("a = " + "[" * 9000, "not readable as toml"),
    "dotted.toml": (".".join("a" * 20_000) + " = 1\n", "expected lines of at most"),
    "deep.py": ("GRPOConfig(a=" + "(" * 5000, "not readable as py"),
    "minus.py": ("GRPOConfig(a=" + "-" * 50_000 + "1)", "not readable as py"),
    "nul.py": ("GRPOConfig(a=1)\0", "not readable as py"),
    "digits.sh": ("beta=" + "9" * 5000, "not readable as sh"),
    "long.sh": ("--a" * 300_000, "expected lines of at most"),
    "twice.json": ('{"a": {"beta": 1, "beta": 2}}', "'beta' stands twice in one object"),
    "hex.py": ("GRPOConfig(beta=0x" + "f" * 5000 + ")", "hex.py:1: beta: a number beyond every float"),
    "hex.yaml": ("a: [{b: 0x" + "f" * 5000 + "}]", "hex.yaml:1: a: a number beyond every float"),
    "cells.ipynb": ('{"cells": [1, {"cell_type": "code", "source": 7}]}', "no call such as GRPOConfig(...) in it"),
    "word.json": ('{"loss_type": "' + "x" * 5000 + '"}', "loss_type 'xxx"),
    "large.yaml": ("#" * 1_000_001, "expected a configuration of at most"),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_is_refused_at_once(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, message = CONFIGURATIONS[name]
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    begin = time.process_time()
    assert main(["lint", str(path), "--dialect", "trl"]) == 2
    assert time.process_time() - begin < 5
    told = capsys.readouterr().err
    assert message in told
    assert len(told) < 600 + len(str(path))
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_sum_too_deep_to_compute_ends_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Python 3.14 reads what those before it refuse."""
    path = tmp_path / "plus.py"
    path.write_text("GRPOConfig(beta=" + "1+" * 50_000 + "1)", encoding="utf-8")
    begin = time.process_time()
    read = main(["lint", str(path), "--dialect", "trl"]) != 2
    assert time.process_time() - begin < 5
    told = capsys.readouterr()
    assert ("because it is computed: " in told.out) if read else ("not readable as py" in told.err)


def test_a_value_that_no_literal_can_be_is_computed_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "c.py"
    path.write_text(
        "GRPOConfig(beta={[]: 1}, epsilon=__import__('os').system('touch pwned'), name='\\d', steps=1)", "utf-8"
    )
    found = read_configuration([str(path)])
    assert dict(found.settings) == {"name": "\\d", "steps": 1}
    assert len(found.computed) == 2
    assert not Path("pwned").exists()


@pytest.mark.parametrize("word", ["beta=" + "9" * 5000, "x" * 100_000, "a\0=1", "beta=\0", "/dev/zero", "."])
def test_a_word_of_the_command_line_is_refused(word: str) -> None:
    with pytest.raises(UsageError) as error:
        read_configuration([word, "b=1", "c\0d"])
    assert len(str(error.value)) < 600


def test_what_a_configuration_says_is_not_obeyed_by_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.json"
    evil = "\x1b[2J\x9b31m\u202e\ud800\r"
    path.write_text(json.dumps({"run_name": evil, evil: {"x": 1e300, evil: [evil]}, "\x1b": 1}), "utf-8")
    for words in (["--format", "text"], ["--format", "json"], ["--format", "sarif"]):
        main(["lint", str(path), "--dialect", "trl", *words, "--fail-on", "error"])
        told = "".join(capsys.readouterr())
        assert not set(told) & set("\x1b\x9b\u202e\ud800\r")
        assert told.encode("utf-8")


ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "upwards": ({"dtype": "float32", "file": "../secret.safetensors", "key": "x"}, "beside the vector"),
    "absolute": ({"dtype": "float32", "file": "/etc/passwd", "key": "x"}, "beside the vector"),
    "a link": ({"dtype": "float32", "file": "link.safetensors", "key": "x"}, "beside the vector"),
    "repeated": ({"dtype": "float32", "shape": [10**12], "runs": [["0x1.0p0", 10**12]]}, "shape: expected"),
    "more runs than elements": ({"dtype": "float32", "shape": [2], "runs": [["0x1.0p0", 10**12]]}, "runs: expected"),
    "negative runs": ({"dtype": "float32", "shape": [2], "runs": [[1, -1], [1, 3]]}, "runs: expected"),
    "a product": ({"dtype": "float32", "shape": [2**21, 2**21], "data": []}, "shape: expected at most"),
    "axes": ({"dtype": "float32", "shape": [1] * 100, "data": [1]}, "at most 8 sizes"),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_an_array_of_a_vector_stays_in_its_folder_and_its_size(kind: str, tmp_path: Path) -> None:
    (tmp_path / "secret.safetensors").write_bytes(b"secret")
    folder = tmp_path / "vectors"
    folder.mkdir()
    (folder / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    entry, message = ARRAYS[kind]
    with pytest.raises(ValueError, match=message):
        decode_array(entry, folder)


TENSORS = {
    "10 GB of header": (10 * 2**30).to_bytes(8, "little") + b"{}",
    "a header beyond the file": (100).to_bytes(8, "little") + b"{}",
    "no header": b"",
    "three bytes": b"abc",
    "beyond the data": b'{"x":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
    "before the data": b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}',
}


@pytest.mark.parametrize("kind", TENSORS)
def test_a_file_of_tensors_is_within_its_size(kind: str, tmp_path: Path) -> None:
    content = TENSORS[kind]
    path = tmp_path / "x.safetensors"
    path.write_bytes(content if content[:1] != b"{" else len(content).to_bytes(8, "little") + content)
    with pytest.raises(ValueError, match=r"expected (a safetensors header|to lie) within"):
        read_tensors(path)


def test_a_sparse_file_of_tensors_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match="expected at most 67108864 bytes"):
        read_tensors(path)
    shape = {"dtype": "F32", "shape": [2**37], "data_offsets": [0, 2**39]}
    header = json.dumps(
        {"__metadata__": {"gspo_trace": '{"version":1,"parts":[{"step":0}]}'}, "0.logp": shape}
    ).encode()
    with path.open("r+b") as file:
        file.write(len(header).to_bytes(8, "little") + header)
    with pytest.raises(Broken, match="expected at most 2147483648 bytes"):
        read_shard(path)


@pytest.mark.parametrize("parts", [[{"step": 0}] * 400_000, [-1] * 1_000_000, "x" * 4_000_000])
def test_a_long_header_of_a_trace_is_not_looked_at_for_long(parts: Any, tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": {"gspo_trace": json.dumps({"version": 1, "parts": parts})}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    begin = time.process_time()
    with pytest.raises(Broken) as error:
        read_shard(path)
    assert time.process_time() - begin < 5
    assert len(str(error.value)) < 400


VECTOR_FILES: dict[str, str] = {
    "not JSON": "{nope",
    "deep": "[" * 100_000,
    "a list": "[]",
    "a word": '"x"',
    "without an id": json.dumps({name: value for name, value in VECTOR.items() if name != "id"}),
    "clauses in a number": json.dumps(VECTOR | {"clauses": 7}),
    "refusing a list": json.dumps(VECTOR | {"refuses": []}),
}


@pytest.mark.parametrize("kind", VECTOR_FILES)
def test_a_vector_that_is_none_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(VECTOR_FILES[kind], encoding="utf-8")
    with pytest.raises(ValueError, match=r"x\.json: not a vector"):
        read_vector(path)
    link = tmp_path / "link.json"
    link.symlink_to(path)
    with pytest.raises(ValueError, match=r"link\.json: expected a vector, a file of"):
        read_vector(link)


@pytest.fixture(scope="module")
def record() -> list[dict[str, Any]]:
    from ..test_reports import run

    return [json.loads(line) for line in render([run(name="honest")], "json").splitlines()]


CHANGES: dict[str, Any] = {
    "a target of a number": lambda lines: lines[0].update(target=7),
    "an implementation of lists": lambda lines: lines[0].update(implementation={"name": ["x"]}),
    "a suite of its own": lambda lines: lines[0].update(suite={"digest": 1}),
    "another level": lambda lines: lines[0].update(level="MAYBE"),
    "a verdict of its own": lambda lines: lines[1].update(verdict="superb"),
    "a reason of a number": lambda lines: lines[1].update(reason=1),
    "clauses in a word": lambda lines: lines[1].update(clauses="GSPO"),
    "endless seconds": lambda lines: lines[1].update(seconds=10**400),
    "a field of its own": lambda lines: lines[1].update(x=1),
    "no verdict": lambda lines: lines[1].pop("verdict"),
    "outputs in a list": lambda lines: lines[1].update(outputs=[1]),
    "an output of a word": lambda lines: lines[1].update(outputs={"loss": "x"}),
    "an array of objects": lambda lines: _got(lines, {"dtype": "object", "shape": [1], "data": [0]}),
    "an array of long strings": lambda lines: _got(lines, {"dtype": "S2000000000", "shape": [1], "data": [0]}),
    "an array by its shape": lambda lines: _got(lines, {"dtype": "float32", "shape": [10**9], "data": [0]}),
    "a diagnosis in a word": lambda lines: lines[-1].update(diagnosis="x"),
    "a diagnosis of numbers": lambda lines: lines[-1].update(diagnosis={"sentence": 1, "clauses": []}),
    "links of numbers": lambda lines: lines[-1]["diagnosis"].update(links=[1]),
    "runners-up of words": lambda lines: lines[-1]["diagnosis"].update(runners_up=["x"]),
    "a footer that lies about its kind": lambda lines: lines[-1].update(complete="yes"),
}


def _got(lines: list[dict[str, Any]], array: dict[str, Any]) -> None:
    next(iter(lines[1]["outputs"].values()))["got"] = array


@pytest.mark.parametrize("kind", CHANGES)
def test_a_record_is_checked_before_it_is_believed(kind: str, record: list[dict[str, Any]], tmp_path: Path) -> None:
    lines = json.loads(json.dumps(record))
    CHANGES[kind](lines)
    path = tmp_path / "run.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    with pytest.raises(UsageError) as error:
        read(path)
    assert "line " in str(error.value)
    assert len(str(error.value)) < 500 + len(str(path))


def test_a_record_is_cut_at_its_end_or_not_at_all(record: list[dict[str, Any]], tmp_path: Path) -> None:
    lines = [json.dumps(line) for line in record]
    path = tmp_path / "run.jsonl"
    path.write_text("\n".join([*lines[:-1], lines[-1][:9]]), encoding="utf-8")
    assert read(path).failure == "the record is cut short"
    path.write_text("\n".join([lines[0], lines[1][:9], *lines[2:]]), encoding="utf-8")
    with pytest.raises(UsageError, match="line 2: not JSON"):
        read(path)
    path.write_text("\n".join([lines[0], "[" + "[]," * 2**22 + "[]]", *lines[1:]]), encoding="utf-8")
    with pytest.raises(UsageError, match="at most 4194304 lists and objects"):
        read(path)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"type":"header","schema":"' + b"x" * 10**6 + b'"}',
        b'{"type":"header","schema":1e999}',
    ],
)
def test_what_is_no_record_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="expected") as error:
        read(path)
    assert len(str(error.value)) < 300 + len(str(path))


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "run.jsonl"
    os.mkfifo(pipe)
    for reader in (read, lambda path: read_configuration([str(path)])):
        with pytest.raises(UsageError, match="got what is no file"):
            reader(pipe)
    with pytest.raises(ValueError, match="expected a vector, a file of"):
        read_vector(pipe)
