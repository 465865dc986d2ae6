"""Rooms, choices and environments of trainers, with a trainer made up for the tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gspo_conformance.cli import main
from gspo_conformance.resolve import connect
from gspo_conformance.suite import known_failures
from gspo_conformance.target import Capabilities
from gspo_conformance.trainers import room as room_module
from gspo_conformance.trainers.adapter import TrainerTarget
from gspo_conformance.trainers.dialect import nearest
from gspo_conformance.trainers.environment import Environment, environment_of, expected
from gspo_conformance.trainers.room import Choice, Room, Version, choose, is_trainer, rooms
from gspo_conformance.words import HarnessError, UsageError

TOML = """
title = "A trainer of the tests"
homepage = "https://example.org"
framework = "torch"
default = "1.1"
[versions."1.0"]
install = []
[versions."1.1"]
install = []
"""


@pytest.fixture
def sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "rooms" / "sample"
    folder.mkdir(parents=True)
    (folder / "trainer.toml").write_text(TOML, encoding="utf-8")
    (folder / "known").mkdir()
    (folder / "known" / "1.0.txt").write_text("ratio/*  # a reason\n", encoding="utf-8")
    monkeypatch.setattr(room_module, "ROOMS", tmp_path / "rooms")
    monkeypatch.setenv("GSPO_TRAINERS", str(tmp_path / "environments"))
    rooms.cache_clear()
    yield folder
    rooms.cache_clear()


def test_a_choice_names_version_and_variant(sample: Path) -> None:
    assert is_trainer("sample@1.0:default")
    assert not is_trainer("simple")
    plain, other = choose("sample"), choose("sample@1.0:default")
    assert (plain.version.name, plain.variant, plain.attribute.rpartition(":")[2]) == ("1.1", "", "claims")
    assert (other.version.name, other.variant, other.attribute.rpartition(":")[2]) == ("1.0", "default", "default")


def test_known_failures_are_those_of_the_version(sample: Path) -> None:
    assert expected(choose("sample@1.0")) == sample / "known" / "1.0.txt"
    assert expected(choose("sample")) is None


def test_known_failures_are_borrowed_by_name(sample: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (sample / "known" / "default.txt").write_text("mask/*  # another reason\n", encoding="utf-8")
    own = f"sample@{sys.executable}"
    for name, spec, reasons in (
        ("sample@1.0", own, ["a reason"]),
        ("sample@1.0", f"{own}:default", ["another reason"]),
        ("sample:default", "my:target", ["another reason"]),
        (None, own, []),
    ):
        assert [entry.reason for entry in known_failures(name, spec).entries] == reasons
    monkeypatch.chdir(tmp_path)
    Path("sample").write_text("gradient/*  # of a file\n", encoding="utf-8")
    assert [entry.reason for entry in known_failures("sample", own).entries] == ["of a file"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sample@1.2", "unknown version of sample '1.2'"),
        ("sample:defualt", "did you mean 'default'"),
        ("smaple", "did you mean 'sample'"),
    ],
)
def test_misspelt_choices_suggest_the_near_one(sample: Path, spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose(spec)


def test_a_trainer_that_is_not_set_up_says_how(sample: Path) -> None:
    with pytest.raises(UsageError, match=r"run `gspo trainers setup sample@1\.1` first"):
        connect("sample")


def test_an_environment_of_the_users_own(sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is installed there is found, beside the suite, on the user's own path; none of its failures is expected."""
    own = tmp_path / "own"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(own)], check=True)
    (packages,) = own.glob("lib/python3*/site-packages")
    (packages / "numpy.pth").write_text(str(Path(np.__file__).parents[1]), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fork"))
    for spec, variant in ((f"sample@{own}", "claims"), (f"sample@{own}/bin/python:default", "default")):
        choice = choose(spec)
        assert (choice.version.name, choice.attribute.rpartition(":")[2], expected(choice)) == ("1.1", variant, None)
        environment = environment_of(choice, spec)
        assert environment.command("a:b")[0] == str(own / "bin" / "python")
        path = environment.variables()["PYTHONPATH"].split(os.pathsep)
        assert path[1:] == [str(tmp_path / "fork")]
        code = "import gspo_core, gspo_conformance, array_api_compat"
        subprocess.run([environment.python, "-c", code], env={**os.environ, "PYTHONPATH": path[0]}, check=True)


def test_a_checkout_in_the_working_directory_is_not_the_pinned_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A maintainer stands in the checkout, whose package has the name of the one that is installed."""
    (tmp_path / "gspo_torch").mkdir()
    (tmp_path / "gspo_torch" / "__init__.py").write_text("raise SystemExit('a checkout')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, *_bare(Version("1", ())).command("gspo_conformance.targets.torch_fused:target")[1:]]
    start = b'{"cmd": "start", "version": 1}\n{"cmd": "stop"}\n'
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=variables, input=start, capture_output=True, check=False)
    assert b"a checkout" not in done.stderr
    assert b"capabilities" in done.stdout, done.stdout


def test_an_environment_that_cannot_run_the_suite_is_named(sample: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\necho 3 10\n", encoding="utf-8")
    old.chmod(0o755)
    expected = {
        f"sample@{tmp_path}/absent": "expected a Python or the folder of a virtual environment after @, got .*absent",
        f"sample@{bare}": "cannot run the suite: ModuleNotFoundError: No module named 'numpy'",
        f"sample@{old}": "expected Python 3.11 or newer, got 3.10",
    }
    for spec, message in expected.items():
        with pytest.raises(UsageError, match=message):
            connect(spec)


def test_a_checkout_is_no_package(sample: Path) -> None:
    toml = sample / "trainer.toml"
    toml.write_text('source = "https://example.org"\n' + toml.read_text(encoding="utf-8"), encoding="utf-8")
    rooms.cache_clear()
    with pytest.raises(UsageError, match="`gspo trainers setup sample --source DIR` takes yours"):
        choose("sample@./here")


def _git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    done = subprocess.run(["git", *who, "-C", str(folder), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_checkout_at_another_commit_is_code_of_the_users_own(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hunts a run of some commit under the name, the known failures and the record of another."""
    source = tmp_path / "a checkout"
    (source / "inside").mkdir(parents=True)
    (source / "inside" / "loss.py").write_text("1\n", encoding="utf-8")
    _git(source, "init", "-q")
    _git(source, "add", ".")
    _git(source, "commit", "-qm", "one")
    commit = _git(source, "rev-parse", "HEAD")
    toml = f'source = "https://example.org"\n{TOML}'.replace("[]", f'[]\ncommit = "{commit}"', 1)
    (sample / "trainer.toml").write_text(toml, encoding="utf-8")
    rooms.cache_clear()
    environment = Environment((choice := choose("sample@1.0")).room, choice.version)

    def found(folder: Path) -> tuple[str, bool]:
        environment.folder.mkdir(parents=True, exist_ok=True)
        written = {"install": [], "source": str(folder)}
        (environment.folder / "gspo.json").write_text(json.dumps(written), encoding="utf-8")
        assert environment.variables()["GSPO_OTHER"] == environment.other
        return environment.other, expected(choice) is not None

    assert found(source) == ("", True)
    assert found(source / "inside") == ("", True), "a folder below some repository: nobody says of what commit"
    (source / "inside" / "loss.py").write_text("2\n", encoding="utf-8")
    assert found(source) == (f"{commit[:8]}, changed", False)
    _git(source, "commit", "-qam", "two")
    other = _git(source, "rev-parse", "HEAD")[:8]
    assert found(source) == (other, False)
    assert main(["trainers", "record", "sample@1.0"]) == 2
    assert f"expected a checkout of A trainer of the tests at {commit}, got {other}" in capsys.readouterr().err
    assert main(["trainers", "setup", "sample@1.0", "--source", str(source)]) == 0
    assert f"its checkout is {other}: code of your own" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("release", "other", "version"),
    [
        ("8eb27cc2", "", {"roll": "8eb27cc2", "torch": "2"}),
        ("8eb27cc2", "12345678", {"roll": "12345678", "torch": "2", "adapter written for": "c0c0d2b1, 8eb27cc2"}),
        ("ffff", "", {"roll": "ffff", "torch": "2", "adapter written for": "c0c0d2b1, 8eb27cc2"}),
    ],
)
def test_the_code_that_runs_is_named(
    release: str, other: str, version: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GSPO_OTHER", other)
    given, dialect = {"roll": release, "torch": "2"}, rooms()["roll"].dialect
    target = TrainerTarget(given, dialect, release, lambda settings, case: {}, {}, Capabilities(operations=frozenset()))
    assert target.version == version


@pytest.mark.parametrize("action", ["setup", "remove", "record"])
def test_an_environment_of_the_users_own_is_left_alone(
    sample: Path, tmp_path: Path, action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    assert main(["trainers", action, f"sample@{own}"]) == 2
    assert "an environment of yours" in capsys.readouterr().err
    assert own.is_dir()


@pytest.mark.parametrize(
    ("release", "versions", "expected"),
    [
        ("0.9.0", ("0.9.0", "0.9.1"), "0.9.0"),
        ("0.8.0", ("0.9.0", "0.9.1"), "0.9.0"),
        ("0.10.0.dev0", ("0.9.1", "0.9.0"), "0.9.1"),
        ("0.10", ("0.9.1", "0.11"), "0.11"),
        ("1.0.5", ("1.0.4", "981e3f68"), "1.0.4"),
        ("ff00", ("981e3f68",), "981e3f68"),
    ],
)
def test_another_release_has_the_keys_of_the_next_that_is_known(
    release: str, versions: tuple[str, ...], expected: str
) -> None:
    assert nearest(release, versions) == expected


def test_a_package_takes_no_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hunts a --source that is accepted and then not used."""
    monkeypatch.setenv("GSPO_TRAINERS", str(tmp_path / "environments"))
    with pytest.raises(UsageError, match="gspo check bare@path/to/environment"):
        _bare(Version("1", ())).set_up(print, tmp_path)


def _bare(version: Version, source: str = "") -> Environment:
    return Environment(Room("bare", "Bare", "", "torch", version.name, {version.name: version}, source), version)


def test_a_failed_installation_is_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSPO_TRAINERS", str(tmp_path))
    environment = _bare(Version("1", ("--no-index a-package-that-is-nowhere",)))
    said: list[str] = []
    with pytest.raises(HarnessError, match="exit code"):
        environment.set_up(said.append)
    assert any("a-package-that-is-nowhere" in line for line in said)
    assert not environment.ready


def test_a_trainer_from_a_checkout_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSPO_TRAINERS", str(tmp_path))
    environment = _bare(Version("1", ()), source="https://example.org/repository")
    with pytest.raises(UsageError, match="--source"):
        environment.set_up(print)
    with pytest.raises(UsageError, match="no such folder"):
        environment.set_up(print, tmp_path / "missing")


def test_only_the_suite_is_on_the_path_of_an_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hunts a leak of this process's packages: the child sees gspo_core and gspo_conformance, and not pytest."""
    monkeypatch.setenv("GSPO_TRAINERS", str(tmp_path))
    environment = _bare(Version("1", ()))
    environment.folder.mkdir(parents=True)
    (environment.folder / "gspo.json").write_text(json.dumps({"install": [], "source": ""}), encoding="utf-8")
    assert environment.ready
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment.folder)], check=True)
    code = (
        "import importlib.util as u; "
        "print([bool(u.find_spec(n)) for n in ('gspo_core', 'gspo_conformance', 'pytest', 'gspo_torch')])"
    )
    variables = {**os.environ, **environment.variables()}
    done = subprocess.run([environment.python, "-c", code], env=variables, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[True, True, False, False]"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('title = "Acme"', "expected a field 'versions'"),
        ('title = "Acme"\n[versions."1"]\ninstal = []', "expected a field 'install'"),
        ('title = "Acme"\n[versions."1"]\ninstall = []', "missing 3 required positional arguments: 'homepage'"),
        ("title = Acme", "Invalid value"),
    ],
)
def test_a_room_that_is_not_whole_is_told_by_file_and_field(
    text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hunts "a defect of gspo itself" for every command, of a file that somebody has begun to write."""
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme" / "trainer.toml").write_text(text)
    monkeypatch.setattr(room_module, "ROOMS", tmp_path)
    rooms.cache_clear()
    try:
        assert main(["trainers", "list"]) == 2
        assert main(["lint", "a=1", "--dialect", "acme"]) == 2
    finally:
        rooms.cache_clear()
    told = capsys.readouterr().err
    assert told.count("acme/trainer.toml") == 2
    assert words in told


def test_every_room_is_whole() -> None:
    for room in rooms().values():
        assert room.default in room.versions, room.name
        assert (room.folder / "facts.md").is_file(), room.name
        assert room.dialect.name == room.name
        assert set(room.dialect.versions) <= set(room.versions), room.name


def test_an_environment_of_other_requirements_is_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSPO_TRAINERS", str(tmp_path))
    environment = _bare(Version("1", ("numpy==2.0",)))
    environment.folder.mkdir(parents=True)
    (environment.folder / "gspo.json").write_text(json.dumps({"install": [], "source": ""}), encoding="utf-8")
    assert not environment.ready
    with pytest.raises(UsageError, match="not set up"):
        environment_of(Choice(environment.room, environment.version, ""))
