"""Built-in targets by name. A new one is a new file here (or anywhere) and one line in `BUILT_IN`.

A name is `backend` or `backend:variant`; its value says where the target object, or a function that
makes it, lives. Nothing is imported before a name is asked for.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

BUILT_IN: dict[str, str] = {
    "numpy": "gspo_conformance.targets.numpy:target",
    "torch": "gspo_conformance.targets.torch:target",
    "torch:compile": "gspo_conformance.targets.torch:compile_target",
    "torch:cp": "gspo_conformance.targets.torch_ranks:cp",
    "torch:cuda": "gspo_conformance.targets.torch_cuda:target",
    "torch:cuda-fused": "gspo_conformance.targets.torch_cuda:fused_target",
    "torch:ddp": "gspo_conformance.targets.torch_ranks:ddp",
    "torch:fused": "gspo_conformance.targets.torch_fused:target",
    "jax": "gspo_conformance.targets.jax:target",
    "jax:jit": "gspo_conformance.targets.jax:jit_target",
    "jax:fused": "gspo_conformance.targets.jax_fused:target",
    "jax:shard": "gspo_conformance.targets.jax_shard:target",
}


def built_in(name: str) -> Any:
    """The built-in target of that name; a KeyError where there is none, an ImportError where its framework is missing."""
    module, _, attribute = BUILT_IN[name].partition(":")
    made = getattr(import_module(module), attribute)
    return made() if callable(made) and not hasattr(made, "run") else made


@dataclass(frozen=True)
class Launch:
    """How a built-in target runs where not in the process of the suite: `jobs` processes, with these variables."""

    jobs: int
    variables: dict[str, str] = field(default_factory=dict)


def launch(name: str) -> Launch | None:
    """The processes of a target that is too slow for one, None for all others.

    JAX traces every case and compiles every operation for every shape: most of the time of a run. Processes for
    each dtype share little that another could use, the compiler is told not to optimise programs that run once,
    and what it made is kept for the next run, in `$JAX_COMPILATION_CACHE_DIR` or ~/.cache/gspo/jax. All threads
    allocate from one heap: what the compiler's leave behind in heaps of their own comes to 80 MB (glibc).
    """
    if name.partition(":")[0] != "jax":
        return None
    jobs = min(max(2, os.cpu_count() or 2), 8)
    heaps = {"MALLOC_ARENA_MAX": os.environ.get("MALLOC_ARENA_MAX", "1")}
    return Launch(jobs, {"XLA_FLAGS": _quick_compilation(), **heaps, **_kept_programs()})


def _kept_programs() -> dict[str, str]:
    """JAX's own cache of compiled programs, for programs as small as one operation; JAX tells versions and flags apart."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gspo" / "jax"
    chosen = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    return {"JAX_COMPILATION_CACHE_DIR": str(folder), **chosen} | {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("JAX_COMPILATION_CACHE", "JAX_PERSISTENT"))
    }


def _quick_compilation() -> str:
    flags = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
    try:
        if version("jaxlib").startswith("0.10."):  # a flag that XLA does not know ends the process
            flags += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
    except PackageNotFoundError:
        pass
    return " ".join([*flags, os.environ.get("XLA_FLAGS", "")]).strip()
