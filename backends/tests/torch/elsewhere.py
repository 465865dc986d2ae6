"""A device that is not the CPU, where there is no other: PyTorch keeps its tensors apart from the host's, as it does a GPU's.

Their memory is the host's, but only operations that PyTorch sends to the device reach it. An operation on tensors of
both places is an error, as is one that takes the numbers of the device for NumPy's. `OPERATIONS` has what was sent, and
`READS` what came back to the host: where a GPU would have to be waited for.

Registering a device cannot be undone: import this in a process of its own. As a program it runs what is named and
prints JSON: `conforms TARGET [AREA ...]` the suite, `losses` what a loss sends and reads.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = "elsewhere"
OPERATIONS: list[str] = []
READS: list[str] = []
# What launches nothing on a GPU: memory, and other views of it.
FREE = {"empty", "empty_strided", "as_strided", "view", "expand", "alias", "resize_", "_local_scalar_dense"}
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


def _copy(source: Tensor, target: Tensor, *_: Any) -> Tensor:
    if target.device.type == "cpu":
        READS.append("copy")
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
    OPERATIONS.append(name)
    if name in _OWN:
        return _OWN[name](*args, **options)
    if name == "_local_scalar_dense":
        READS.append("item")
    tensors = [value for value in tree_leaves((args, options)) if isinstance(value, Tensor)]
    # An index may be the host's: PyTorch copies it.
    if name != "index" and any(tensor.device.type == "cpu" and tensor.ndim > 0 for tensor in tensors):
        raise RuntimeError(f"{name}: expected one device, got {[str(tensor.device) for tensor in tensors]}")
    options.pop("pin_memory", None)
    return _by_host(operation, args, options)


def _by_host(operation: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """The host's result; what the operation writes into, it writes into, and `out` takes the shape that it needs."""
    arguments = operation._schema.arguments
    given = dict(zip([each.name for each in arguments], args, strict=False)) | options
    written = [each for each in arguments if each.alias_info is not None and each.alias_info.is_write]
    outs = {each.name: torch.empty(0, dtype=given[each.name].dtype) for each in written if each.kwarg_only}
    args, options = tree_map(_here, (args, options))
    found = operation(*args, **(options | outs))
    if len(written) != len(operation._schema.returns):
        return tree_map(_there, found)
    targets = [given[each.name] for each in written]
    if outs:
        for target, value in zip(targets, found if isinstance(found, tuple) else (found,), strict=True):
            _here(_resize(target, value.shape)).copy_(value)
    return targets[0] if len(targets) == 1 else tuple(targets)


backend_registration._setup_privateuseone_for_python_backend(DEVICE, backend_module=_Module())
_LIBRARY = torch.library.Library("_", "IMPL")
_LIBRARY.fallback(_run, "PrivateUse1")


def conforms(name: str, *areas: str) -> dict[str, Any]:
    """The verdicts of a target on the device: how many of each, and which are no pass."""
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


def losses() -> dict[str, Any]:
    """For presets and layouts: what the loss launches, what its gradient launches, and what is read of either."""
    import gspo_torch as gspo

    torch.manual_seed(0)
    mask = torch.arange(9) < torch.tensor([[9], [5], [7], [3]])
    old_logp, advantages = -torch.rand(4, 9), torch.randn(4).to(DEVICE)
    tokens = {
        "padded": (old_logp.to(DEVICE), gspo.Padded(mask.to(DEVICE))),
        "packed": (old_logp[mask].to(DEVICE), gspo.Packed(torch.tensor([0, 9, 14, 21, 24]).to(DEVICE))),
    }
    found = {}
    for name in ("gspo", "gspo_token", "grpo", "dapo", "cispo"):
        for layout, (old, sequences) in tokens.items():
            logp = (old + 0.01).requires_grad_()
            OPERATIONS.clear()
            READS.clear()
            objective = getattr(gspo.Objective, name)()
            out = gspo.policy_loss(objective, logp=logp, old_logp=old, advantages=advantages, sequences=sequences)
            forward = len(_launched())
            out.loss.backward()
            counts = {"loss": forward, "gradient": len(_launched()) - forward, "reads": len(READS)}
            found[f"{name} {layout}"] = counts
    return found


def _launched() -> list[str]:
    return [name for name in OPERATIONS if name not in FREE]


def main() -> None:
    what, *rest = sys.argv[1:]
    sys.stdout.write(json.dumps({"conforms": conforms, "losses": losses}[what](*rest)))


if __name__ == "__main__":
    main()
