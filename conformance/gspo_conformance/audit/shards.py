"""One file of a trace: a safetensors file whose `__metadata__` holds a JSON header under `gspo_trace`.

Nothing in a file is believed before it is checked: sizes first, then JSON, then the schema, then every
tensor's place. What is wrong is a `Broken` with one sentence; the rest of the trace is read all the
same. Arrays are read when they are asked for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jsonschema import Draft202012Validator, ValidationError

from gspo_core import Objective
from gspo_core.objective import PRESETS

from ..formats import ROOT
from ..tensors import NumPyArray
from ..words import choices, plural, read_json

KEY = "gspo_trace"
VERSION = 1
MAX_HEADER = 8_000_000
MAX_ARRAY = 2**31
MAX_EMPTY = 2**20
MAX_PARTS = 16_384
_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
STORED = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
LOGPS = ("logp", "old_logp", "behavior_logp", "ref_logp")
TOKEN_ARRAYS = (*LOGPS, "gradient")
FLOATS = frozenset({*TOKEN_ARRAYS, "advantages", "rewards"})
NAMES = FLOATS | {"mask", "offsets", "groups"}

_SCHEMA = json.loads((ROOT / "schemas" / "trace.schema.json").read_text(encoding="utf-8"))
HEADER = frozenset(_SCHEMA["properties"])
RUN, PART = (frozenset(_SCHEMA["$defs"][name]["properties"]) for name in ("run", "part"))


class Broken(Exception):
    """A file that cannot be read, and why; `other` where it is no file of a trace at all."""

    def __init__(self, path: Path, reason: str, *, other: bool = False) -> None:
        super().__init__(f"{path.name}: {reason}")
        self.path, self.reason, self.other = path, reason, other


@dataclass(frozen=True)
class Tensor:
    """Where an array lies in its file."""

    dtype: str
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class Shard:
    """A file that was found sound; `header` obeys `schemas/trace.schema.json`."""

    path: Path
    header: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(repr=False)

    def array(self, name: str) -> NumPyArray:
        """A tensor of the file; bfloat16 and float16 as float32, a mask as booleans, other integers as int64."""
        tensor = self.tensors[name]
        kind, count = _DTYPES[tensor.dtype], math.prod(tensor.shape)
        try:
            values = np.fromfile(self.path, dtype=kind, count=count, offset=tensor.start)
        except OSError as error:
            raise Broken(self.path, error.strerror or str(error)) from None
        except MemoryError:
            raise Broken(self.path, f"{name}: {count} elements do not fit into memory") from None
        if values.size != count:
            raise Broken(self.path, f"{name}: the file was cut while it was read")
        found = values.astype(bool) if name.endswith(".mask") else _decoded(values, tensor.dtype)
        return found.reshape(tensor.shape)


def read_shard(path: Path) -> Shard:
    """The shard in `path`; raises `Broken`."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length, first = int.from_bytes(file.read(8), "little"), file.read(1)
            if first not in (b"{", b""):
                raise Broken(
                    path, f"no safetensors file: expected {{ at byte 8, where its header begins, got {first!r}"
                )
            if size < 8 or length > size - 8:
                raise Broken(path, f"truncated: {size} bytes, and its header alone should end at {8 + length}")
            if length > MAX_HEADER:
                raise Broken(path, f"expected a header of at most {MAX_HEADER} bytes, got {length}")
            raw = (first + file.read(length - 1)) if length else b""
    except OSError as error:
        raise Broken(path, error.strerror or str(error)) from None
    entries = _json(path, raw, "the safetensors header")
    header = _header(path, entries.pop("__metadata__", None))
    tensors = {name: _tensor(path, name, entry, 8 + length, size) for name, entry in entries.items()}
    _apart(path, tensors)
    return _consistent(Shard(path, header, tensors))


def _apart(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """No byte belongs to two tensors: a small file does not stand for many large arrays."""
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
        count = math.prod(tensor.shape)
        if count and tensor.start < end:
            raise Broken(path, f"{name[:80]}: expected data_offsets behind those of the tensor before, got an overlap")
        end = max(end, tensor.start + count * _DTYPES[tensor.dtype].itemsize)


def _json(path: Path, raw: bytes | str, what: str) -> dict[str, Any]:
    try:
        found = read_json(raw)
    except (ValueError, RecursionError) as error:
        own = f": {error}" if type(error) is ValueError else ""
        raise Broken(path, f"{what} is not JSON{own}") from None
    if not isinstance(found, dict):
        raise Broken(path, f"{what}: expected a JSON object")
    return found


def _header(path: Path, metadata: Any) -> dict[str, Any]:
    if not isinstance(metadata, dict) or not isinstance(metadata.get(KEY), str):
        told = f"expected a JSON string under {KEY!r} in __metadata__: not a file of a trace"
        raise Broken(path, told, other=True)
    header = _json(path, metadata[KEY], KEY)
    if isinstance(header.get("parts"), list) and len(header["parts"]) > MAX_PARTS:
        raise Broken(path, f"{KEY}.parts: expected at most {MAX_PARTS}, got {len(header['parts'])}")
    wrong = next(_validator().iter_errors(header), None)
    if wrong is not None:
        raise Broken(path, f"{KEY}{wrong.json_path.removeprefix('$')}: {_said(wrong)[:160]}")
    for fields in (header.get("run", {}), *header["parts"]):
        if isinstance(fields.get("objective"), str):
            fields["objective"] = _preset(path, fields["objective"])
    return header


def _preset(path: Path, name: str) -> dict[str, Any]:
    if name not in PRESETS:
        raise Broken(path, f"{KEY}: objective: {choices(name, PRESETS, 'preset')}")
    return getattr(Objective, name)().to_dict()


def _said(wrong: ValidationError) -> str:
    """What is wrong in words; where several kinds are allowed, the description of them."""
    described = wrong.schema.get("description") if isinstance(wrong.schema, dict) else None
    if wrong.validator == "oneOf" and described:
        return f"expected {described}, got {wrong.instance!r}"
    return wrong.message


@cache
def _validator() -> Draft202012Validator:
    return Draft202012Validator(_SCHEMA)


def _tensor(path: Path, name: str, entry: Any, base: int, size: int) -> Tensor:
    """The place of a tensor, checked against the size of the file."""
    try:
        kind, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = all(type(number) is int and 0 <= number < 2**48 for number in (*shape, start, end))
    except (TypeError, KeyError, ValueError):
        raise Broken(path, f"{name[:80]}: expected dtype, shape and data_offsets") from None
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise Broken(path, f"{name[:80]}: expected a dtype among {', '.join(_DTYPES)}, got {str(kind)[:20]!r}")
    if whole and len(shape) > 2:
        raise Broken(path, f"{name[:80]}: expected at most two axes, got shape {str(shape)[:60]}")
    if not whole or end - start != math.prod(shape) * _DTYPES[kind].itemsize:
        raise Broken(
            path, f"{name[:80]}: shape {str(shape)[:60]} of {kind} does not fill data_offsets [{start}, {end}]"
        )
    if 0 in shape and max(shape) > MAX_EMPTY:
        raise Broken(
            path,
            f"{name[:80]}: expected sizes of at most {MAX_EMPTY} where there are no elements, got shape {str(shape)[:60]}",
        )
    if end - start > MAX_ARRAY:
        raise Broken(path, f"{name[:80]}: expected at most {MAX_ARRAY} bytes, got {end - start}")
    if base + end > size:
        raise Broken(path, f"truncated: {size} bytes, and {name[:80]} ends at {base + end}")
    return Tensor(kind, tuple(shape), base + start)


def _consistent(shard: Shard) -> Shard:
    """Every tensor belongs to a part, and the arrays of a part fit each other."""
    count = len(shard.header["parts"])
    parts: list[dict[str, Tensor]] = [{} for _ in range(count)]
    for key, tensor in shard.tensors.items():
        index, _, name = key.partition(".")
        if not index.isdecimal() or int(index) >= count:
            such = f"such as '0.{name or index}', of {plural(count, 'part')}"
            raise Broken(shard.path, f"tensor {key[:80]!r}: expected <index of a part>.<name>, {such[:80]}")
        if name not in NAMES:
            raise Broken(shard.path, f"tensor {key[:80]!r}: {choices(name, NAMES, 'name')}")
        parts[int(index)][name] = tensor
    for index, tensors in enumerate(parts):
        reason = _misfit(tensors)
        if reason:
            raise Broken(shard.path, f"part {index}: {reason}")
    return shard


def _misfit(tensors: Mapping[str, Tensor]) -> str:
    """What is wrong with the arrays of one part; empty where they fit."""
    for name, tensor in tensors.items():
        if (tensor.dtype in STORED) != (name in FLOATS):
            return f"{name}: expected {'floating' if name in FLOATS else 'integers or booleans'}, got {tensor.dtype}"
    tokens = {name: tensors[name].shape for name in TOKEN_ARRAYS if name in tensors}
    if not tokens and not {"mask", "offsets"} & tensors.keys():
        lengths = {tensors[name].shape for name in ("rewards", "groups", "advantages") if name in tensors}
        fit = len(lengths) < 2 and all(len(one) == 1 for one in lengths)
        return "" if fit else f"expected rewards, groups and advantages of one length, got {lengths}"
    shape = next(iter(tokens.values()), tensors["mask"].shape if "mask" in tensors else (0,))
    if any(other != shape for other in tokens.values()):
        return f"expected log-probabilities of one shape, got {tokens}"
    if "offsets" not in tensors and ("mask" not in tensors or len(shape) != 2):
        return f"expected offsets [S + 1] beside tokens [N], or a mask [B, T], got tokens {shape} and {sorted(tensors)}"
    if "mask" in tensors and tensors["mask"].shape != shape:
        return f"mask: expected shape {shape}, got {tensors['mask'].shape}"
    return _misfit_per_response(tensors, shape)


def _misfit_per_response(tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> str:
    packed = tensors.get("offsets")
    if packed is not None and (len(packed.shape) != 1 or packed.shape[0] < 2 or len(shape) != 1):
        return f"offsets: expected shape [S + 1] beside tokens [N], got {packed.shape} beside {shape}"
    number = shape[0] if packed is None else packed.shape[0] - 1
    for name in ("rewards", "groups", "advantages"):
        allowed = [(number,), shape] if name == "advantages" else [(number,)]
        if name in tensors and tensors[name].shape not in allowed:
            return f"{name}: expected shape {' or '.join(map(str, allowed))}, got {tensors[name].shape}"
    return ""


def _decoded(values: NumPyArray, dtype: str) -> NumPyArray:
    if dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    if dtype == "F16":
        return values.astype(np.float32)
    return values if dtype in STORED else values.astype(np.int64)
