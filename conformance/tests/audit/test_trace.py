"""The format of a trace: ten lines write it, what is cut or hostile is named, and nothing but headers is held."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from gspo_conformance.audit import read_trace
from gspo_conformance.audit.shards import Broken, read_shard
from gspo_conformance.tensors import NumPyArray
from gspo_conformance.words import UsageError

LOGP = np.array([[-1.0, -2.0, -3.0], [-0.5, 9.0, 9.0]], np.float32)
MASK = np.array([[True, True, False], [True, False, False]])


def write(path: Path, parts: list[dict[str, Any]], arrays: dict[str, NumPyArray], **rest: Any) -> Path:
    """The ten-line writer of the documentation."""
    header = {"version": 1, "parts": parts} | rest
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(arrays, path, metadata={"gspo_trace": json.dumps(header)})
    return path


def padded(at: int = 0) -> dict[str, NumPyArray]:
    return {
        f"{at}.logp": LOGP,
        f"{at}.old_logp": LOGP - 1,
        f"{at}.mask": MASK,
        f"{at}.advantages": np.array([1.0, -1.0], np.float32),
    }


def test_what_safetensors_writes_is_read_and_only_counted_tokens_stay(tmp_path: Path) -> None:
    write(tmp_path / "rank-0/0.safetensors", [{"step": 3, "loss": -0.5, "metrics": {"clip_fraction": 0.5}}], padded())
    packed = {
        "0.logp": LOGP.ravel(),
        "0.offsets": np.array([0, 3, 3, 5]),
        "0.advantages": np.arange(3, dtype=np.float32),
        "1.rewards": np.ones(4, np.float32),
        "1.groups": np.array([0, 0, 1, 1]),
    }
    write(
        tmp_path / "rank-1/0.safetensors",
        [{"step": 3, "microbatch": 1}, {"step": 3, "kind": "rollout"}],
        packed,
        rank=1,
    )
    trace = read_trace(tmp_path)
    assert trace.indices == (3,)
    assert trace.ranks == (0, 1)
    step = trace.step(3)
    assert [(part.rank, part.microbatch, part.loss) for part in step.parts] == [(0, 0, -0.5), (1, 1, None)]
    tokens = step.tokens()
    assert tokens.logp is not None
    assert tokens.logp.tolist() == [-1, -2, -0.5, -1, -2, -3, -0.5, 9]
    assert tokens.lengths.tolist() == [2, 1, 3, 0, 2]
    assert tokens.old_logp is None
    assert tokens.means(tokens.logp).tolist() == [-1.5, -0.5, -2, 0, 4.25]
    assert step.rollouts[0].array("groups") is not None


def test_bfloat16_is_exact_and_named(tmp_path: Path) -> None:
    raw = np.array([0x3F81, 0xC000], "<u2").tobytes()
    header = {
        "0.logp": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]},
        "0.offsets": {"dtype": "I64", "shape": [2], "data_offsets": [4, 20]},
        "__metadata__": {"gspo_trace": json.dumps({"version": 1, "parts": [{"step": 0}]})},
    }
    text = json.dumps(header).encode()
    body = raw + np.array([0, 2]).tobytes()
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + body)
    part = read_trace(tmp_path).step(0).parts[0]
    assert part.stored == {"logp": "bfloat16"}
    assert part.tokens.logp is not None
    assert part.tokens.logp.tolist() == [1 + 2**-7, -2.0]


@pytest.mark.parametrize("kept", [0, 5, 40, -1, -30])
def test_a_truncated_file_is_named_and_the_others_are_read(kept: int, tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"{i}.safetensors", [{"step": i}], padded())
    cut = tmp_path / "1.safetensors"
    cut.write_bytes(cut.read_bytes()[:kept])
    trace = read_trace(tmp_path)
    assert trace.indices == (0, 2)
    assert [(one.path.name, one.reason.split(":")[0]) for one in trace.broken] == [("1.safetensors", "truncated")]


def _raw(header: bytes, body: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + body


def _with(tensors: dict[str, Any] | None = None, **fields: Any) -> bytes:
    inner = json.dumps({"version": 1, "parts": [{"step": 0}]} | fields)
    return _raw(json.dumps({"__metadata__": {"gspo_trace": inner}} | (tensors or {})).encode(), b"\0" * 64)


HOSTILE = {
    "huge header": (2**60).to_bytes(8, "little") + b"{}",
    "header beyond the limit": _raw(b" " * 8_000_001),
    "not json": _raw(b"{nope"),
    "deep json": _raw(b"[" * 100_000),
    "a list": _raw(b"[]"),
    "no header of ours": _raw(b"{}"),
    "another version": _with(version=2),
    "a pickle in disguise": b"\x80\x04\x95" + b"x" * 40,
    "a negative step": _with(parts=[{"step": -1}]),
    "a loss in words": _with(parts=[{"step": 0, "loss": "big"}]),
    "NaN in the header": _raw(b'{"__metadata__": {"gspo_trace": "{\\"version\\": NaN}"}}'),
    "a tensor beyond the file": _with({"0.logp": {"dtype": "F32", "shape": [40], "data_offsets": [0, 160]}}),
    "a shape that overflows": _with({"0.logp": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}}),
    "a negative offset": _with({"0.logp": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}),
    "a shape that does not fill": _with({"0.logp": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}),
    "no such dtype": _with({"0.logp": {"dtype": "object", "shape": [1], "data_offsets": [0, 4]}}),
    "no such part": _with({"7.logp": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}),
    "no such array": _with({"0.weights": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}),
    "tokens without a layout": _with({"0.logp": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}),
    "integers for log-probabilities": _with({"0.logp": {"dtype": "I32", "shape": [2], "data_offsets": [0, 8]}}),
    "a list for a tensor": _with({"0.logp": [1, 2]}),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_one_clear_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(Broken) as error:
        read_shard(path)
    assert str(error.value).startswith("x.safetensors: ")
    assert len(str(error.value)) < 400
    with pytest.raises(UsageError, match=r"expected a trace|x.safetensors cannot be read: "):
        read_trace(tmp_path)


def test_offsets_that_fall_are_refused_when_they_are_read(tmp_path: Path) -> None:
    arrays = {"0.logp": np.zeros(4, np.float32), "0.offsets": np.array([0, 3, 2])}
    write(tmp_path / "x.safetensors", [{"step": 0}], arrays)
    with pytest.raises(Broken, match="expected to rise from 0 to at most 4"):
        _ = read_trace(tmp_path).step(0).parts[0].tokens


def test_packed_tokens_have_a_length_whatever_was_recorded_of_them(tmp_path: Path) -> None:
    """Hunts `offsets: expected to rise from 0 to at most 0` of a part with `ref_logp` alone."""
    arrays = {"0.ref_logp": np.zeros(4, np.float32), "0.offsets": np.array([0, 3, 4])}
    write(tmp_path / "x.safetensors", [{"step": 0}], arrays)
    assert read_trace(tmp_path).step(0).parts[0].tokens.lengths.tolist() == [3, 1]


def test_there_must_be_a_trace(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such trace"):
        read_trace(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="expected a trace"):
        read_trace(tmp_path)


def test_a_micro_batch_that_a_resumed_run_recorded_again_counts_once(tmp_path: Path) -> None:
    for folder, loss in (("first", -1.0), ("resumed", -2.0)):
        parts = [{"step": 4, "microbatch": 0, "loss": loss}, {"step": 4, "kind": "rollout", "microbatch": 0}]
        arrays = padded() | {"1.rewards": np.ones(2, np.float32)}
        write(tmp_path / folder / "rank-0/4.safetensors", parts, arrays)
    step = read_trace(tmp_path).step(4)
    assert [part.loss for part in step.parts] == [-2.0]
    assert len(step.rollouts) == 1


def test_micro_batches_without_a_number_are_told_apart_by_their_place(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", [{"step": 0}, {"step": 0}], padded(0) | padded(1))
    write(tmp_path / "b.safetensors", [{"step": 0}], padded())
    assert [part.microbatch for part in read_trace(tmp_path).step(0).parts] == [0, 0, 1]
