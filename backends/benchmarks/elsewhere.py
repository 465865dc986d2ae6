"""A device that is not the CPU, where there is no other: PyTorch keeps its tensors apart from the host's, as it does a GPU's.

Their memory is the host's, but only operations that PyTorch sends to the device reach it. An operation on tensors of
both places is an error, as is one that takes the numbers of the device for NumPy's.

Registering a device cannot be undone: import this in a process of its own. As a program it runs the suite there and
prints the vectors by their verdicts, as JSON: `elsewhere.py torch|torch:fused [AREA ...]`.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration

DEVICE = "elsewhere"
# The kinds of device of DLPack.
_HOST, _OTHER = 1, 12
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


class _Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """What `torch.autocast` asks of a device."""
        return [torch.bfloat16, torch.float16]


def _seen_from(device: int, tensor: Tensor) -> Tensor:
    """The same memory as a tensor of the other device."""
    capsule = torch._C._to_dlpack(tensor.detach())
    place = ctypes.cast(_pointer(capsule, b"dltensor") + 8, ctypes.POINTER(ctypes.c_int32))
    place[0], place[1] = device, 0
    return torch._C._from_dlpack(capsule)


def _there(value: Any) -> Any:
    return _seen_from(_OTHER, value) if isinstance(value, Tensor) and value.device.type == "cpu" else value


def _here(value: Any) -> Any:
    if isinstance(value, Tensor) and value.device.type == DEVICE:
        return _seen_from(_HOST, value)
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == DEVICE else value


def _each(function: Callable[[Any], Any], value: Any) -> Any:
    """`function` of a value, or of every one in a list, tuple or dict: operations take and return nothing deeper."""
    if isinstance(value, dict):
        return {name: _each(function, one) for name, one in value.items()}
    return type(value)([_each(function, one) for one in value]) if isinstance(value, (list, tuple)) else function(value)


def _copy(source: Tensor, target: Tensor, *_: Any) -> Tensor:
    _here(target).copy_(_here(source))
    return target


def _resize(tensor: Tensor, shape: Any, **_: Any) -> Tensor:
    if tuple(tensor.shape) != tuple(shape):
        tensor.data = _there(torch.empty(shape, dtype=tensor.dtype))
    return tensor


_OWN = {"_copy_from": _copy, "resize_": _resize}


def _run(operation: Any, *args: Any, **options: Any) -> Any:
    """Any operation of PyTorch on tensors of the device, by the host's kernel."""
    name = operation._schema.name.removeprefix("aten::")
    if name in _OWN:
        return _OWN[name](*args, **options)
    if name != "index":  # an index may be the host's: PyTorch copies it
        _each(partial(_refuse_host, name), (args, options))
    options.pop("pin_memory", None)
    return _by_host(operation, args, options)


def _refuse_host(name: str, value: Any) -> None:
    if isinstance(value, Tensor) and value.device.type == "cpu" and value.ndim:
        raise RuntimeError(f"{name}: expected one device, got a tensor of the CPU beside one of {DEVICE!r}")


@cache
def _signature(operation: Any) -> tuple[list[str], list[str], list[str]]:
    """Names: of all arguments, of those that the operation writes into, and which of these are its `out`."""
    arguments = operation._schema.arguments
    written = [each for each in arguments if each.alias_info is not None and each.alias_info.is_write]
    return [each.name for each in arguments], [each.name for each in written], [e.name for e in written if e.kwarg_only]


def _by_host(operation: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """The host's result; what the operation writes into, it writes into, and `out` takes the shape that it needs."""
    names, written, outs = _signature(operation)
    given = dict(zip(names, args, strict=False)) | options
    args, options = _each(_here, (args, options))
    found = operation(*args, **(options | {name: torch.empty(0, dtype=given[name].dtype) for name in outs}))
    if len(written) != len(operation._schema.returns):
        return _each(_there, found)
    targets = [given[name] for name in written]
    if outs:
        for target, value in zip(targets, found if isinstance(found, tuple) else (found,), strict=True):
            _here(_resize(target, value.shape)).copy_(value)
    return targets[0] if len(targets) == 1 else tuple(targets)


backend_registration._setup_privateuseone_for_python_backend(DEVICE, backend_module=_Module())
_LIBRARY = torch.library.Library("_", "IMPL")
_LIBRARY.fallback(_run, "PrivateUse1")


def conforms(name: str, *areas: str) -> dict[str, Any]:
    """The vectors by what a target on the device makes of them."""
    import gspo_torch
    from gspo_conformance import check
    from gspo_conformance.targets.core import CoreTarget
    from gspo_conformance.targets.torch import Torch
    from gspo_conformance.targets.torch_fused import fused

    made = {
        "torch": lambda: CoreTarget(DEVICE, Torch(DEVICE), gspo_torch, traced=True),
        "torch:fused": lambda: fused(DEVICE, DEVICE, traced=True),
    }
    results = check(made[name](), *areas, dtypes=["float32"]).results
    found: dict[str, list[str]] = {}
    for result in results:
        found.setdefault(result.verdict, []).append(result.id)
    return found


def main() -> None:
    sys.stdout.write(json.dumps(conforms(*sys.argv[1:])))


if __name__ == "__main__":
    main()
