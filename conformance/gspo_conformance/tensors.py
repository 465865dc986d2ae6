"""Arrays on disk: hex floats with a readable shadow inside JSON, safetensors beside it for the large ones.

A number is exact or it is nothing: floats are C99 hex strings, so that no decimal parser can move a
bit; NaN and infinities are the strings "nan", "inf", "-inf", which strict JSON can carry. An array of
storage dtype bfloat16 or float16 decodes to float32, which holds every one of its values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

NumPyArray = npt.NDArray[Any]

_NUMPY = {
    "bool": np.bool_,
    "int64": np.int64,
    "float16": np.float32,
    "bfloat16": np.float32,
    "float32": np.float32,
    "float64": np.float64,
}
_STORED = {"BOOL": np.bool_, "I64": np.int64, "F32": np.float32, "F64": np.float64}
_STORED_NAME = {np.dtype(kind).name: name for name, kind in _STORED.items()}
LARGE = 4096
MAX_ELEMENTS, MAX_FILE, MAX_HEADER = 2**22, 2**26, 2**20


def encode_float(value: float) -> str:
    """0.5 -> '0x1.0p-1'; trailing zeros of the fraction removed; NaN and infinities by name."""
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    mantissa, _, exponent = float(value).hex().partition("p")
    head, dot, fraction = mantissa.partition(".")
    return f"{head}{dot}{fraction.rstrip('0') or '0'}p{exponent}" if dot else f"{mantissa}p{exponent}"


def decode_float(text: str) -> float:
    """The inverse of `encode_float`."""
    return float(text) if text in ("nan", "inf", "-inf") else float.fromhex(text)


def encode_array(values: NumPyArray, dtype: str) -> dict[str, Any]:
    """`{dtype, shape, data, shadow}`, or `{dtype, shape, runs}` where long runs repeat."""
    flat = [_scalar(value, dtype) for value in np.asarray(values).ravel()]
    head: dict[str, Any] = {"dtype": dtype, "shape": list(np.shape(values))}
    runs = [[value, sum(1 for _ in same)] for value, same in groupby(flat)]
    if len(flat) >= 64 and len(runs) * 8 < len(flat):
        return head | {"runs": runs}
    if dtype in ("bool", "int64"):
        return head | {"data": flat}
    return head | {"data": flat, "shadow": [_shadow(float(value)) for value in np.asarray(values).ravel()]}


def decode_array(entry: Mapping[str, Any], folder: Path) -> NumPyArray:
    """The array of an ARRAY entry, read-only; `folder` is where its safetensors file lies."""
    kind = _NUMPY[entry["dtype"]]
    if "file" in entry:
        array = read_tensors(_beside(folder, entry["file"]))[entry["key"]].astype(kind)
    else:
        array = _held(_items(entry, size_of(entry["shape"])), kind).reshape(entry["shape"])
    array.flags.writeable = False
    return array


def _held(numbers: Sequence[Any], kind: Any) -> NumPyArray:
    """The numbers as an array of a dtype that is wide enough for them."""
    with np.errstate(over="raise"):
        try:
            return np.array(numbers, dtype=kind)
        except FloatingPointError as error:
            raise ValueError(f"data: expected numbers of {np.dtype(kind).name}, got one that overflows") from error


def tensor_bytes(arrays: Mapping[str, NumPyArray]) -> bytes:
    """A safetensors file, put together by hand so that its bytes never depend on a library's version."""
    header: dict[str, Any] = {}
    body = b""
    for key in sorted(arrays):
        data = np.ascontiguousarray(arrays[key]).tobytes()
        header[key] = {
            "dtype": _STORED_NAME[arrays[key].dtype.name],
            "shape": list(arrays[key].shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    text = json.dumps(header, separators=(",", ":"), sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def read_tensors(path: Path) -> dict[str, NumPyArray]:
    """Every array of a safetensors file."""
    if path.stat().st_size > MAX_FILE:
        raise ValueError(f"{path.name}: expected at most {MAX_FILE} bytes, got {path.stat().st_size}")
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    if not 0 < length <= min(MAX_HEADER, len(raw) - 8):
        raise ValueError(f"{path.name}: expected a safetensors header within its {len(raw)} bytes, got {length} bytes")
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    return {key: _tensor(raw[8 + length :], entry) for key, entry in header.items()}


def _tensor(raw: bytes, entry: Mapping[str, Any]) -> NumPyArray:
    first, last = entry["data_offsets"]
    if not 0 <= first <= last <= len(raw):
        raise ValueError(f"data_offsets: expected to lie within {len(raw)} bytes, got {[first, last]}")
    return np.frombuffer(raw[first:last], dtype=_STORED[entry["dtype"]]).reshape(entry["shape"])


def _beside(folder: Path, name: str) -> Path:
    """A file of that folder itself: no path out of it, no link."""
    path = folder / name
    if path.parent != folder or path.name != name or path.is_symlink():
        raise ValueError(f"file: expected the name of a file beside the vector, got {name!r:.80}")
    return path


def size_of(shape: Sequence[int]) -> int:
    """How many elements an array of `shape` has; raises where the shape is none, or the array too large for a vector."""
    if len(shape) > 8 or not all(type(n) is int and 0 <= n <= MAX_ELEMENTS for n in shape):
        raise ValueError(f"shape: expected at most 8 sizes up to {MAX_ELEMENTS}, got {shape!r:.80}")
    if math.prod(shape) > MAX_ELEMENTS:
        raise ValueError(f"shape: expected at most {MAX_ELEMENTS} elements, got {list(shape)}")
    return math.prod(shape)


def repeated(runs: Sequence[Any], size: int) -> list[Any]:
    """The values of `[value, count]` pairs, which together make `size`."""
    counts = [count for _, count in runs]
    if not all(type(count) is int and count > 0 for count in counts) or sum(counts) != size:
        raise ValueError(f"runs: expected counts that make {size}, got {sum(counts)}")
    return [value for value, count in runs for _ in range(count)]


def _items(entry: Mapping[str, Any], size: int) -> list[Any]:
    flat = repeated(entry["runs"], size) if "runs" in entry else list(entry["data"])
    return [decode_float(item) if isinstance(item, str) else item for item in flat]


def _scalar(value: Any, dtype: str) -> str | int:
    return int(value) if dtype in ("bool", "int64") else encode_float(float(value))


def _shadow(value: float) -> float | str:
    return float(f"{value:.6g}") if math.isfinite(value) else encode_float(value)


def canonical(value: Any, indent: int = 0) -> str:
    """JSON the one way this suite writes it: objects open, lists of scalars on one line, rows of lists below each other."""
    pad, inner = "  " * indent, "  " * (indent + 1)
    if isinstance(value, dict) and value:
        lines = [f"{inner}{json.dumps(key)}: {canonical(item, indent + 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(lines) + "\n" + pad + "}"
    if _nested(value):
        return "[\n" + ",\n".join(inner + canonical(item, indent + 1) for item in value) + "\n" + pad + "]"
    return json.dumps(value, allow_nan=False, ensure_ascii=False)


def _nested(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and any(isinstance(item, (dict, list)) for item in value)
    )
