"""What leaves the checkout: the wheel, the sdist, and text that must not be in either."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from .repository import ROOT, TEXT, VENDORED, committed

MACHINE_PATH = re.compile(r"(?<![\w.$~/-])/(?:home|root|work|Users|mnt|opt)/\w|file:///|[A-Z]:\\\\Users")
PACKAGES = ("gspo_core", "gspo_torch", "gspo_jax", "gspo_conformance")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of this checkout and the wheel built from that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


def _files(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder.parent))
        for path in folder.rglob("*")
        if path.is_file() and not {"__pycache__", "tests"} & set(path.parts)
    }


@pytest.mark.slow
class TestBuilt:
    def test_the_wheel_holds_exactly_the_four_packages_and_the_spec(self, wheel: Path) -> None:
        held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
        folders = ("gspo_core", "backends/gspo_torch", "backends/gspo_jax", "conformance/gspo_conformance")
        expected = set().union(*(_files(ROOT / folder) for folder in folders))
        expected |= {f"gspo_conformance/spec/{path.name}" for path in (ROOT / "docs" / "spec").glob("*.md")}
        expected |= {"gspo_conformance/protocol.md"}
        assert held == expected

    @pytest.mark.parametrize("package", PACKAGES)
    def test_every_package_is_typed(self, wheel: Path, package: str) -> None:
        assert f"{package}/py.typed" in zipfile.ZipFile(wheel).namelist()

    def test_the_sdist_holds_everything_committed(self, built: Path) -> None:
        (found,) = built.glob("*.tar.gz")
        with tarfile.open(found) as archive:
            held = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
        assert {str(path.relative_to(ROOT)) for path in committed()} <= held

    def test_the_installed_wheel_works_outside_the_checkout(self, wheel: Path, tmp_path: Path) -> None:
        zipfile.ZipFile(wheel).extractall(tmp_path)
        code = (
            f"import sys; sys.path = [{str(tmp_path)!r}] + [p for p in sys.path if not p.startswith({str(ROOT)!r})"
            " or 'site-packages' in p]; import numpy as np, gspo_core as g; o = np.ones((1, 2));"
            f" assert g.__file__.startswith({str(tmp_path)!r});"
            " print(float(g.gspo_loss(-o, -o, o[:, 0], o).loss))"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.stdout.strip() == "-1.0", done.stderr


def _readable() -> list[Path]:
    ours = (path for path in committed() if VENDORED not in path.parents)
    return [path for path in ours if path.suffix in TEXT]


def test_no_committed_text_names_a_machine() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in _readable()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if MACHINE_PATH.search(line) and path.name != Path(__file__).name
    ]
    assert not found


def test_no_source_file_is_longer_than_400_lines() -> None:
    sources = [path for path in _readable() if path.suffix in {".py", ".js", ".mjs", ".css", ".sh"}]
    assert not {path.name: n for path in sources if (n := len(path.read_text(encoding="utf-8").splitlines())) > 400}
