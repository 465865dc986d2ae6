"""The walls between the rooms: who may import whom, read from the source and seen in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from .repository import ROOT, imports, modules, roots

FRAMEWORKS = {"torch", "jax", "numpy"}
OURS = {"gspo_core", "gspo_torch", "gspo_jax", "gspo_conformance"}
CORE = modules("gspo_core")
ORACLE = modules("conformance/gspo_conformance/oracle")
BACKENDS = {name: modules(f"backends/{name}") for name in ("gspo_torch", "gspo_jax")}
PACKAGES = ("gspo_core", "backends/gspo_torch", "backends/gspo_jax", "conformance/gspo_conformance")


def _named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", CORE, ids=_named)
def test_the_core_imports_only_the_standard_library_and_the_array_api(path: Path) -> None:
    assert roots(path) <= set(sys.stdlib_module_names) | {"array_api_compat", "gspo_core"}


@pytest.mark.parametrize("path", CORE, ids=_named)
def test_the_core_names_no_framework_of_the_compat_layer(path: Path) -> None:
    wrapped = {f"array_api_compat.{name}" for name in ("cupy", "dask", "jax", "numpy", "torch")}
    assert not {name for name in imports(path) if any(name == one or name.startswith(f"{one}.") for one in wrapped)}


@pytest.mark.parametrize(("backend", "path"), [(name, path) for name in BACKENDS for path in BACKENDS[name]])
def test_a_backend_imports_the_core_and_its_own_framework(backend: str, path: Path) -> None:
    framework, other = ("torch", "jax") if backend == "gspo_torch" else ("jax", "torch")
    assert not roots(path) & (OURS - {"gspo_core", backend} | {other}), f"{backend} is for {framework} alone"


@pytest.mark.parametrize("path", ORACLE, ids=_named)
def test_the_oracle_imports_no_implementation(path: Path) -> None:
    assert not roots(path) & ((OURS | FRAMEWORKS) - {"gspo_conformance"})
    ours = {name for name in imports(path) if name.startswith("gspo_conformance")}
    assert all(name.startswith("gspo_conformance.oracle") for name in ours)


def _rooms(package: str) -> dict[str, set[str]]:
    """The modules of a package, each with those of the package that it imports, inside functions too."""
    home = (ROOT / package).parent
    rooms = {".".join(path.relative_to(home).with_suffix("").parts): path for path in modules(package)}
    return {
        room: {known for name in imports(path) for known in (name, name.rpartition(".")[0]) if known in rooms}
        for room, path in rooms.items()
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_one_that_imports_it(package: str) -> None:
    rooms = _rooms(package)
    assert any(rooms.values())
    assert list(TopologicalSorter(rooms).static_order())


def test_every_room_was_looked_at() -> None:
    assert len(CORE) > 10
    assert all(BACKENDS.values())
    assert ORACLE


def _loaded(code: str) -> set[str]:
    report = f"{code}\nimport sys\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_core_loads_no_framework() -> None:
    assert not _loaded("import gspo_core") & (FRAMEWORKS | OURS - {"gspo_core"})


def test_importing_the_core_loads_little_of_the_standard_library() -> None:
    """It is imported before anything is computed, so it takes less than 50 ms (backends/benchmarks/limits.py)."""
    slow = {
        "argparse",
        "asyncio",
        "email",
        "logging",
        "multiprocessing",
        "pathlib",
        "subprocess",
        "tempfile",
        "typing_extensions",
    }
    found = _loaded("import gspo_core")
    assert not found & (slow | {"unittest", "urllib", "zipfile"})


def test_a_loss_on_numpy_loads_no_other_framework() -> None:
    code = "import numpy as np, gspo_core as g; o = np.ones((1, 2)); g.gspo_loss(-o, -o, o[:, 0], o)"
    assert not _loaded(code) & {"torch", "jax"}


@pytest.mark.parametrize(("backend", "other"), [("gspo_torch", "jax"), ("gspo_jax", "torch")])
def test_a_backend_loads_neither_the_other_framework_nor_the_suite(backend: str, other: str) -> None:
    assert not _loaded(f"import {backend}") & {other, "gspo_conformance"}
