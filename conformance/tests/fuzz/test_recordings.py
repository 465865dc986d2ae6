"""Recordings of which the arrays hold anything: `gspo audit` and `gspo noise` say something, or refuse the file in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from gspo_conformance.audit.shards import FLOATS, TOKEN_ARRAYS
from gspo_conformance.cli import main

NUMBERS = (0.0, 1.0, -1.0, -0.5, -2.25, 3e-4, 1e-38, 1e38, -1e38, np.inf, -np.inf, np.nan)
WHOLE = (0, 1, 2, 3, 4, -1, 2**31, 2**63 - 1, -(2**63))
KINDS = {"float32": "F32", "float64": "F64", "float16": "F16", "int64": "I64", "bool": "BOOL"}
LOSSES = st.sampled_from((0, 0.5, -1, 1e308, -1e308, 5e-324, "nan", "inf", "-inf", 2**53))


@st.composite
def arrays(draw: st.DrawFn, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array of that name; sometimes of another shape than it should have."""
    shape = shape if draw(st.integers(0, 15)) else draw(st.sampled_from(((), (0,), (1,), (2, 2), (0, 3), (3, 0))))
    size = int(np.prod(shape))
    if name in FLOATS:
        pool = NUMBERS if draw(st.booleans()) else NUMBERS[:6]
        dtype = draw(st.sampled_from(("float32", "float32", "float64", "float16")))
        with np.errstate(all="ignore"):
            return np.reshape(
                np.array(draw(st.lists(st.sampled_from(pool), min_size=size, max_size=size))), shape
            ).astype(dtype)
    pool = WHOLE if draw(st.integers(0, 4)) == 0 else WHOLE[:5]
    found = np.array(draw(st.lists(st.sampled_from(pool), min_size=size, max_size=size)), np.int64)
    if name == "offsets" and draw(st.booleans()):
        found = np.sort(found)
        found[:1] = 0
    return np.reshape(found != 0 if name == "mask" else found, shape)


@st.composite
def parts(draw: st.DrawFn, at: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A call of the loss, or a rollout, and its arrays."""
    rows, width, packed = draw(st.integers(0, 4)), draw(st.integers(0, 3)), draw(st.booleans())
    tokens = (rows * width,) if packed else (rows, width)
    shapes = dict.fromkeys(TOKEN_ARRAYS, tokens) | dict.fromkeys(("rewards", "groups", "advantages"), (rows,))
    shapes |= {"offsets": (rows + 1,)} if packed else {"mask": tokens}
    shapes["advantages"] = tokens if draw(st.integers(0, 3)) == 0 else (rows,)
    names = [name for name in shapes if name in ("offsets", "mask", "logp", "old_logp") or draw(st.booleans())]
    fields = draw(st.fixed_dictionaries({"step": st.integers(0, 2)}, optional={
        "loss": LOSSES, "normalizer": LOSSES, "minibatch": st.integers(0, 1), "rollout": st.integers(0, 1),
        "microbatch": st.integers(0, 2), "kind": st.sampled_from(("loss", "loss", "rollout")),
        "objective": st.sampled_from(("dapo", "cispo", "gspo_token")),
        "metrics": st.dictionaries(st.sampled_from(("clip_fraction", "ratio_mean", "approx_kl", "mine")), LOSSES),
    }))  # fmt: skip
    return fields, {f"{at}.{name}": draw(arrays(name, shapes[name])) for name in names}


@st.composite
def recordings(draw: st.DrawFn) -> bytes:
    """A file of some parts, sound as a file."""
    found = [draw(parts(at)) for at in range(draw(st.integers(1, 3)))]
    run = draw(st.fixed_dictionaries({}, optional={"objective": st.sampled_from(("gspo", "grpo", "dapo", "ppo"))}))
    header = {"version": 1, "run": run, "parts": [fields for fields, _ in found]}
    entries: dict[str, Any] = {"__metadata__": {"gspo_trace": json.dumps(header)}}
    body = b""
    for name, array in (item for _, own in found for item in own.items()):
        place = [len(body), len(body) + array.nbytes]
        entries[name] = {"dtype": KINDS[array.dtype.name], "shape": list(array.shape), "data_offsets": place}
        body += array.tobytes()
    raw = json.dumps(entries).encode()
    return len(raw).to_bytes(8, "little") + raw + body


def test_recordings(fuzz: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def is_audited_or_refused(content: bytes) -> None:
        (tmp_path / "x.safetensors").write_bytes(content)
        for command in ("audit", "noise"):
            code = main([command, str(tmp_path), "--format", "json"])
            told = capsys.readouterr()
            if code not in (0, 1, 2) or (code == 2) != (told.err != "") or (code < 2) != told.out.startswith("{"):
                raise AssertionError(f"{command}: {code}\n{told.err}")

    fuzz(recordings(), is_audited_or_refused, 5)
