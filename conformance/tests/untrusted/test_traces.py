"""Traces that mean harm or are damaged: a sentence for what is wrong, the rest read all the same, and never a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gspo_conformance.audit.exact import total
from gspo_conformance.cli import main

Entries = dict[str, tuple[str, list[int], bytes]]


def shard(
    path: Path, part: dict[str, Any], arrays: dict[str, Any], offsets: dict[str, list[int]] | None = None
) -> None:
    """A file of one part by hand; `offsets` of tensors that lie elsewhere than they should."""
    kinds = {"float32": "F32", "int64": "I64", "bool": "BOOL"}
    entries: dict[str, Any] = {}
    body = b""
    for name, given in arrays.items():
        array = np.asarray(given)
        place = [len(body), len(body) + array.nbytes]
        entries[f"0.{name}"] = {"dtype": kinds[array.dtype.name], "shape": list(array.shape), "data_offsets": place}
        body += array.tobytes()
    for name, place in (offsets or {}).items():
        entries[f"0.{name}"]["data_offsets"] = place
    header = {"version": 1, "run": {"objective": "gspo"}, "parts": [{"step": 0, "loss": 0.5} | part]}
    raw = json.dumps({"__metadata__": {"gspo_trace": json.dumps(header)}, **entries}).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + body)


def said(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[int, str]]:
    """Exit code and words of `gspo audit` and `gspo noise`."""
    found = {}
    for command in ("audit", "noise"):
        code = main([command, str(folder)])
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        found[command] = code, told.out + told.err
    return found


ZEROS, ONES = np.zeros((2, 3), np.float32), np.ones((2, 3), bool)
SIGNS = np.asarray([1.0, -1.0], np.float32)
PADDED = {"logp": ZEROS, "old_logp": ZEROS, "advantages": SIGNS, "mask": ONES}
ROW = np.zeros(4, np.float32)


def packed(*offsets: int) -> dict[str, Any]:
    return {"logp": ROW, "old_logp": ROW, "advantages": SIGNS, "offsets": np.asarray(offsets)}


def empty(*shape: int) -> dict[str, Any]:
    return {name: np.zeros(shape, np.float32) for name in ("logp", "old_logp")} | {"mask": np.zeros(shape, bool)}


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "rows without tokens": ({}, empty(2**40, 0), "expected sizes of at most 1048576 where there are no elements"),
    "columns of nothing": ({}, empty(0, 2**31), "expected sizes of at most 1048576 where there are no elements"),
    "a loss of 400 digits": ({"loss": 10**400}, PADDED, "is beyond every float"),
    "a metric of 400 digits": ({"metrics": {"clip_fraction": -(10**400)}}, PADDED, "is beyond every float"),
    "a mask of one axis": ({}, {"mask": np.ones(3, bool), "rewards": ROW}, "expected offsets [S + 1] beside tokens"),
    "rewards of two axes": ({"kind": "rollout"}, {"rewards": ZEROS}, "expected rewards, groups and advantages of one"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_is_refused(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part, arrays, message = REFUSED[kind]
    shard(tmp_path / "a.safetensors", part, arrays)
    for code, told in said(tmp_path, capsys).values():
        assert code == 2
        assert message in told


def test_bytes_belong_to_one_tensor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard(tmp_path / "a.safetensors", {}, PADDED, {"old_logp": [0, 24]})
    assert "got an overlap" in said(tmp_path, capsys)["audit"][1]


READ: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "offsets beyond int64": ({}, packed(0, 2**63 - 1, -(2**63))),
    "offsets that fall": ({}, packed(0, 3, 1)),
    "offsets that fall, with rewards": ({}, packed(0, 3, 1) | {"rewards": SIGNS, "groups": np.asarray([0, 0])}),
    "a rollout of nobody": (
        {"kind": "rollout"},
        dict.fromkeys(("rewards", "advantages"), ROW[:0]) | {"groups": ONES[:0, 0]},
    ),
    "a normaliser of 0": ({"normalizer": 0}, PADDED | {"logp": -ZEROS - 0.1}),
    "a negative normaliser": ({"normalizer": -3.0}, PADDED | {"logp": -ZEROS - 0.1}),
    "metrics of nobody": ({"metrics": {"ratio_mean": 1.0, "clip_ratio/region_mean": 0.5}}, empty(0, 3)),
    "advantages per token of a rollout": (
        {"kind": "rollout", "rollout": 0},
        PADDED | {"advantages": ZEROS, "groups": np.asarray([0, 1]), "rewards": SIGNS},
    ),
}


@pytest.mark.parametrize("kind", READ)
def test_the_rest_is_read_all_the_same(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part, arrays = READ[kind]
    shard(tmp_path / "a.safetensors", part, arrays)
    shard(tmp_path / "b.safetensors", {"step": 1, "loss": 0.0}, PADDED)
    found = said(tmp_path, capsys)
    assert {code for code, _ in found.values()} <= {0, 1}
    assert "2 steps" in found["audit"][1]
    if kind.startswith("offsets"):
        assert "offsets: expected to rise from 0 to at most 4" in found["audit"][1]
        assert "1 part could not be read" in found["noise"][1]


def test_losses_beyond_every_float_have_a_sum() -> None:
    assert np.isnan(total([np.inf, -np.inf]))
    assert total([1e308, 1e308]) == np.inf
    assert total([0.1] * 10) == 1.0
