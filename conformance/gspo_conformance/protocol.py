"""The messages between suite and program: one JSON object a line, version 1. The schema is `schemas/protocol.schema.json`.

    -> {"cmd": "start", "version": 1}
    <- {"version": 1, "implementation": {"name": "mine"}, "capabilities": {"operations": ["policy_loss"]}}
    -> {"cmd": "run", "seq": 1, "case": {...}}
    <- {"seq": 1, "outputs": {"loss": -0.25}}
    -> {"cmd": "stop"}

Both ends check what they read with the functions here, which say the same as the schema and need no library.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .connection import Broken, Hello, Outputs, Reply, Skipped
from .judge import Stored, as_numpy
from .target import Capabilities, Case
from .tensors import NumPyArray
from .words import cut, read_json

VERSION = 1
MAX_LINE = 16 * 2**20
MAX_HELLO = 2**20
MAX_VALUES = 2**19
MAX_AXES, MAX_SIZE = 32, 2**40
_WORDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_DTYPES = ("bool", "int64", "float32", "float64")
_KINDS = ("outputs", "skipped", "error")


class ProtocolError(ValueError):
    """A line that is not a message; the text says where, what was expected and what came."""


def encode(message: Mapping[str, Any]) -> bytes:
    """One line of strict JSON."""
    return json.dumps(message, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """The object of a line."""
    if sum(map(line.count, (b"[", b"{", b","))) > MAX_VALUES:
        raise ProtocolError(f"more than {MAX_VALUES} numbers, lists and objects on one line: {excerpt(line)}")
    try:
        found = read_json(line)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not a line of JSON ({error}): {excerpt(line)}") from None
    if not isinstance(found, dict):
        raise ProtocolError(f"expected a JSON object, got {excerpt(line)}")
    return found


def excerpt(line: bytes, length: int = 120) -> str:
    """The beginning of a line, for messages."""
    text = line[: 8 * length].decode("utf-8", "backslashreplace").strip()
    return repr(text if len(text) <= length else f"{text[:length]}...")


def start_message() -> dict[str, Any]:
    """The first message of the suite."""
    return {"cmd": "start", "version": VERSION}


def run_message(seq: int, case: Case) -> dict[str, Any]:
    """One question. It has no field for an answer."""
    return {
        "cmd": "run",
        "seq": seq,
        "case": {
            "id": case.id,
            "operation": case.operation,
            "parameters": dict(case.parameters),
            "dtype": case.dtype,
            "input_dtype": case.input_dtype,
            "outputs": list(case.outputs),
            "inputs": _arrays(case.inputs),
        },
    }


def stop_message() -> dict[str, Any]:
    """The last message of the suite."""
    return {"cmd": "stop"}


def hello_message(implementation: Mapping[str, Any], capabilities: Capabilities) -> dict[str, Any]:
    """A program's answer to `start`."""
    return {
        "version": VERSION,
        "implementation": dict(implementation),
        "capabilities": capabilities.to_dict(),
    }


def reply_message(seq: int, reply: Reply) -> dict[str, Any]:
    """A program's answer to `run`."""
    if isinstance(reply, Outputs):
        outputs = {name: encode_output(value) for name, value in reply.values.items() if value is not None}
        return {"seq": seq, "outputs": outputs}
    if isinstance(reply, Skipped):
        return {"seq": seq, "skipped": {"reason": reply.reason, "url": reply.url}}
    return {"seq": seq, "error": {"message": reply.reason, "traceback": reply.detail}}


def read_hello(message: Mapping[str, Any]) -> Hello:
    """What a program says of itself; raises `ProtocolError`."""
    _fields(message, "", {"version": _integer, "implementation": _object, "capabilities": _object})
    if message["version"] != VERSION:
        raise ProtocolError(f"version: this suite speaks {VERSION}, the program {message['version']!r}")
    if len(message["implementation"]) > 100:
        raise ProtocolError(f"implementation: expected at most 100 versions, got {len(message['implementation'])}")
    for name, value in message["implementation"].items():
        _text(value, f"implementation.{cut(name)}")
        _expect(len(name) + len(value) <= 1000, value, f"implementation.{cut(name)}", "at most 1000 characters")
    if "name" not in message["implementation"]:
        raise ProtocolError("implementation.name is missing")
    try:
        capabilities = Capabilities.from_dict(message["capabilities"])
    except (TypeError, ValueError) as error:
        raise ProtocolError(cut(str(error), 400)) from None
    return Hello(message["implementation"], capabilities)


def read_reply(message: Mapping[str, Any]) -> Reply:
    """The reply of a message whose `seq` is right; raises `ProtocolError`."""
    kinds = [kind for kind in _KINDS if kind in message]
    if len(kinds) != 1:
        raise ProtocolError(f"expected one of {', '.join(_KINDS)}, got {cut(', '.join(message))}")
    _fields(message, "", {"seq": _integer, kinds[0]: _object})
    body = message[kinds[0]]
    if kinds[0] == "outputs":
        return Outputs({name: decode_output(value, f"outputs.{cut(name)}") for name, value in body.items()})
    if kinds[0] == "skipped":
        _fields(body, "skipped.", {"reason": _text}, {"url": _text_or_null})
        return Skipped(body["reason"], body.get("url"))
    _fields(body, "error.", {"message": _text}, {"traceback": _text})
    return Broken(body["message"], body.get("traceback", ""))


def read_case(message: Mapping[str, Any]) -> Case:
    """The question of a `run` message, for programs in Python; raises `ProtocolError`."""
    _fields(message, "", {"cmd": _text, "seq": _integer, "case": _object})
    case = message["case"]
    required = {"id": _text, "operation": _text, "parameters": _object, "dtype": _text, "outputs": _texts}
    _fields(case, "case.", required | {"inputs": _object, "input_dtype": _text_or_null})
    return Case(
        operation=case["operation"],
        parameters=case["parameters"],
        inputs=_decode_inputs(case["inputs"], "case.inputs"),
        dtype=case["dtype"],
        outputs=tuple(case["outputs"]),
        input_dtype=case["input_dtype"],
        id=case["id"],
    )


def encode_array(array: NumPyArray) -> dict[str, Any]:
    """`{dtype, shape, data}`: data flat, row by row; NaN and infinities as strings; every float exact."""
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": _numbers(array.ravel())}


def encode_output(value: Any) -> Any:
    """A plain number as itself, an array with the dtype that it came in, so that the judge sees that too."""
    array, dtype = as_numpy(value)
    if dtype == "number":
        return _numbers(array.ravel())[0]
    return {"dtype": dtype, "shape": list(array.shape), "data": _numbers(array.ravel())}


def decode_output(value: Any, where: str) -> Any:
    """A number, nested lists or `{shape, data}` as an array; `dtype` may say what the numbers were before JSON."""
    if not isinstance(value, dict):
        return _array(value, where)
    _fields(value, f"{where}.", {"shape": _shape, "data": _list}, {"dtype": _text})
    array = _reshape(_array(value["data"], f"{where}.data"), value["shape"], where)
    return Stored(array, value["dtype"]) if "dtype" in value else array


def _arrays(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: [_arrays(part) for part in value] if isinstance(value, list) else encode_array(value)
        for name, value in inputs.items()
    }


def _numbers(flat: NumPyArray) -> list[Any]:
    if flat.dtype.kind != "f" or np.isfinite(flat).all():
        return flat.tolist()
    names = {math.inf: "inf", -math.inf: "-inf"}
    return [number if math.isfinite(number) else names.get(number, "nan") for number in flat.tolist()]


def _decode_inputs(inputs: Any, where: str) -> dict[str, Any]:
    _object(inputs, where)
    return {name: _decode_input(value, f"{where}.{name}") for name, value in inputs.items()}


def _decode_input(value: Any, where: str) -> Any:
    if isinstance(value, list):
        return [_decode_inputs(part, f"{where}[{i}]") for i, part in enumerate(value)]
    _object(value, where)
    _fields(value, f"{where}.", {"dtype": _text, "shape": _shape, "data": _list})
    _expect(value["dtype"] in _DTYPES, value["dtype"], f"{where}.dtype", f"one of {', '.join(_DTYPES)}")
    array = _array(value["data"], f"{where}.data").astype(value["dtype"])
    return _reshape(array, value["shape"], where)


def _reshape(array: NumPyArray, shape: list[int], where: str) -> NumPyArray:
    if array.ndim != 1:
        raise ProtocolError(f"{where}.data: expected a flat list, got rows")
    if array.size != math.prod(shape):
        raise ProtocolError(f"{where}: shape {shape} wants {math.prod(shape)} numbers, data has {array.size}")
    try:
        return array.reshape(shape)
    except ValueError as error:
        raise ProtocolError(f"{where}: shape {shape}: {error}") from None


def _array(value: Any, where: str) -> NumPyArray:
    """Nested lists as float64, or as bool where every leaf is one; integers are numbers like any other."""
    leaves: set[type] = set()
    try:
        array = np.array(_leaf(value, where, leaves))
        return array if leaves == {bool} else array.astype(np.float64)
    except ProtocolError:
        raise
    except (ValueError, OverflowError, RecursionError):
        raise ProtocolError(f"{where}: rows of unequal length, or a number out of range") from None


def _leaf(value: Any, where: str, leaves: set[type]) -> Any:
    if isinstance(value, list):
        return [_leaf(item, where, leaves) for item in value]
    if isinstance(value, str) and value in _WORDS:
        value = _WORDS[value]
    if not isinstance(value, (bool, int, float)):
        raise ProtocolError(f'{where}: expected numbers, true, false, "nan", "inf" or "-inf", got {value!r:.60}')
    leaves.add(type(value))
    return value


Check = Callable[[Any, str], None]


def _fields(
    message: Mapping[str, Any], where: str, required: Mapping[str, Check], optional: Mapping[str, Check] | None = None
) -> None:
    known = {**required, **(optional or {})}
    for name in required:
        if name not in message:
            raise ProtocolError(f"{where}{name} is missing")
    for name, value in message.items():
        if name not in known:
            raise ProtocolError(f"{where}{cut(name)} is not a field; expected {', '.join(known)}")
        known[name](value, f"{where}{name}")


def _expect(holds: bool, value: Any, where: str, expected: str) -> None:
    if not holds:
        raise ProtocolError(f"{where}: expected {expected}, got {value!r:.60}")


def _integer(value: Any, where: str) -> None:
    _expect(isinstance(value, int) and not isinstance(value, bool), value, where, "an integer")


def _text(value: Any, where: str) -> None:
    _expect(isinstance(value, str), value, where, "a string")


def _text_or_null(value: Any, where: str) -> None:
    _expect(value is None or isinstance(value, str), value, where, "a string or null")


def _object(value: Any, where: str) -> None:
    _expect(isinstance(value, dict), value, where, "an object")


def _list(value: Any, where: str) -> None:
    _expect(isinstance(value, list), value, where, "a list")


def _texts(value: Any, where: str) -> None:
    _expect(isinstance(value, list) and all(isinstance(i, str) for i in value), value, where, "a list of strings")


def _shape(value: Any, where: str) -> None:
    ok = isinstance(value, list) and len(value) <= MAX_AXES
    ok = ok and all(type(i) is int and 0 <= i <= MAX_SIZE for i in value)
    _expect(ok, value, where, f"a list of at most {MAX_AXES} sizes")
