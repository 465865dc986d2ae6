"""Where things come from, and which version they have: dependencies, the lock, the manifest, the protocol, the digest."""

from __future__ import annotations

import difflib
import re
import subprocess
import sys
import tomllib
from hashlib import sha256
from importlib.metadata import version

import pytest

from gspo_conformance import protocol, runner
from gspo_conformance.formats import VECTORS
from gspo_conformance.program import Program
from gspo_conformance.reports import render
from gspo_conformance.reports.record import SCHEMA
from gspo_conformance.run import Run
from gspo_conformance.runner import run_vectors
from gspo_core.tests.repository import ROOT

from .public import FILE, public
from .small import small_suite

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
VERSIONS = (ROOT / "docs" / "versioning.md").read_text(encoding="utf-8")


def named() -> dict[str, set[str]]:
    """The packages that pyproject.toml names, and for whom."""
    project, found = PROJECT["project"], {}
    lists = {
        "": project["dependencies"],
        "build": PROJECT["build-system"]["requires"],
        **project["optional-dependencies"],
    }
    for who, requirements in lists.items():
        for requirement in requirements:
            found.setdefault(re.match(r"[\w.-]+", requirement)[0], set()).add(who)  # type: ignore[index]
    return found


ROWS = {
    row[0]: row[1:]
    for row in re.findall(r"^\| ([\w-]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", PAGE, flags=re.MULTILINE)
}
ROWS.pop("package")


def test_the_page_lists_exactly_what_the_project_names() -> None:
    assert set(ROWS) == set(named())


@pytest.mark.parametrize("package", sorted(named()))
def test_every_dependency_is_justified_for_whom_it_serves_and_has_a_licence(package: str) -> None:
    who, why, licence = ROWS[package]
    for one in named()[package]:
        assert (one or "everyone") in who
    assert len(why.split()) >= 4
    assert re.search(r"MIT|BSD|Apache|ISC|MPL|PSF", licence)


def test_the_core_needs_one_package() -> None:
    assert [re.match(r"[\w.-]+", one)[0] for one in PROJECT["project"]["dependencies"]] == ["array-api-compat"]  # type: ignore[index]


def test_every_pin_is_locked_with_a_hash_and_nothing_else_is() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "lock.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_digest_of_a_record_is_that_of_the_manifest() -> None:
    suite = run_vectors(Program("ghost", ["/nonexistent/ghost"]), small_suite()).suite
    assert suite["digest"] == sha256((VECTORS / "MANIFEST").read_bytes()).hexdigest()[:16]
    assert suite["version"] == version("gspo")


def test_another_protocol_is_refused_by_both_ends_of_it() -> None:
    with pytest.raises(protocol.ProtocolError, match=f"version: this suite speaks {protocol.VERSION}, the program 2"):
        protocol.read_hello({"version": protocol.VERSION + 1, "implementation": {"name": "x"}, "capabilities": {}})
    served = subprocess.run(
        [sys.executable, "-m", "gspo_conformance.serve", "numpy"],
        input=protocol.encode({"cmd": "start", "version": protocol.VERSION + 1}),
        capture_output=True,
        check=False,
    )
    told = protocol.decode(served.stdout)["error"]["message"]
    assert told == f"version: this program speaks {protocol.VERSION}, the suite {protocol.VERSION + 1}"


def test_the_page_states_the_numbers_that_hold() -> None:
    assert f'`"version": {protocol.VERSION}` in the first message' in VERSIONS
    assert f'`"schema": {SCHEMA}` in a record' in VERSIONS
    bounds = dict(re.findall(r'"(\w[\w-]*)>=([\d.]+)', (ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    for name, title in (
        ("numpy", "NumPy"),
        ("array-api-compat", "array-api-compat"),
        ("torch", "PyTorch"),
        ("jax", "JAX"),
    ):
        assert f"{title} from {bounds[name]}" in VERSIONS
    assert f"Python from {PROJECT['project']['requires-python'].removeprefix('>=')}" in VERSIONS


def test_what_people_write_down_is_what_is_pinned() -> None:
    pinned, found = FILE.read_text(encoding="utf-8").splitlines(), public().splitlines()
    changed = "\n".join(difflib.unified_diff(pinned, found, "public.txt", "here", lineterm="", n=0))
    assert not changed, f"{changed}\nOn purpose? python conformance/tests/public.py"


def test_records_of_other_vectors_are_not_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    from gspo_conformance.reports.record import merge
    from gspo_conformance.words import UsageError

    runs = [Run("x", suite={"version": "1", "digest": digest, "vectors": 1}) for digest in ("aa", "bb")]
    with pytest.raises(UsageError, match="another suite"):
        merge(runs)
    assert '"digest":"aa"' in render(runs[:1], "json")
    assert runner._suite(())["digest"] == runner._suite(small_suite())["digest"]
