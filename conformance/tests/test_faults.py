"""Faults of the world around a run: signals, full disks, a target that is killed, clocks, locales, files with one byte wrong."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from gspo_conformance import manifest, suite
from gspo_conformance.cli import main
from gspo_conformance.connection import InProcess
from gspo_conformance.files import write_whole
from gspo_conformance.program import Program
from gspo_conformance.reports import FORMATS, render, write
from gspo_conformance.reports.reading import read
from gspo_conformance.run import ERROR, PASS, Run
from gspo_conformance.runner import run_vectors
from gspo_conformance.target import Capabilities, FunctionTarget
from gspo_conformance.words import HarnessError

from .small import small_suite

SUITE = small_suite()
SPEAKER = Path(__file__).with_name("speaker.py")


def conforming() -> Run:
    truth = {vector.id: vector.expected for vector in SUITE}
    target = FunctionTarget(
        "subject",
        lambda case: {name: one.value.astype(case.dtype) for name, one in truth[case.id].items()},
        Capabilities.everything(),
    )
    return run_vectors(InProcess(target), SUITE)


def test_a_program_that_is_killed_in_the_middle_costs_that_vector_alone() -> None:
    program = Program("speaker", [sys.executable, "-S", "-E", str(SPEAKER)])
    started: list[int] = []

    class Killed(Program):
        def ask(self, case: Any, limit: float) -> Any:
            if case.id == "gradient/clipped" and case.dtype == "float32":
                process = self._process
                assert process is not None
                started.append(process._popen.pid)
                os.kill(process._popen.pid, signal.SIGKILL)
            return super().ask(case, limit)

    found = run_vectors(Killed(program.name, program.words), SUITE)
    broken = [result for result in found.results if result.verdict == ERROR]
    assert [result.key for result in broken] == ["gradient/clipped[float32]"]
    assert "killed by SIGKILL" in broken[0].reason
    assert found.counts[PASS] > 4
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)


class Full:
    """A file on a disk that is full after some characters."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def __enter__(self) -> Full:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, text: str) -> None:
        self.file.write(text[: self.room])
        self.file.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("room", [0, 10, 1000])
def test_a_full_disk_leaves_what_was_there(room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = conforming()
    (record,) = write([run], tmp_path, "json")
    before = record.read_bytes()
    fdopen = os.fdopen
    monkeypatch.setattr("os.fdopen", lambda *words, **options: Full(fdopen(*words, **options), room))
    with pytest.raises(HarnessError, match="cannot be written: No space left on device"):
        write([run], tmp_path, "html")
    assert [path.name for path in tmp_path.iterdir()] == [record.name]
    assert record.read_bytes() == before


def test_a_run_whose_report_cannot_be_written_has_told_its_verdict_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fdopen = os.fdopen
    monkeypatch.setattr("os.fdopen", lambda *words, **options: Full(fdopen(*words, **options), 10))
    assert main(["check", "numpy", "-k", "ratio/sequence-ragged", "--out", str(tmp_path)]) == 3
    told = capsys.readouterr()
    assert "conforming: " in told.out
    assert "cannot be written: No space left on device" in told.err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_is_said_before_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        assert main(["check", "numpy", "--out", str(folder)]) == 2
        assert "gspo check: --out " in capsys.readouterr().err


def test_a_file_is_replaced_and_a_link_not_followed(tmp_path: Path) -> None:
    secret, link = tmp_path / "secret", tmp_path / "report.txt"
    secret.write_text("mine", encoding="utf-8")
    link.symlink_to(secret)
    write_whole(link, "report")
    assert not link.is_symlink()
    assert (secret.read_text(encoding="utf-8"), link.read_text(encoding="utf-8")) == ("mine", "report")
    assert link.stat().st_mode & 0o777 == secret.stat().st_mode & 0o777


def test_runs_into_one_folder_leave_whole_files(tmp_path: Path) -> None:
    runs = [conforming() for _ in range(2)]
    runs[1].results.reverse()
    threads = [
        threading.Thread(target=lambda run=run: [write([run], tmp_path, "html") for _ in range(5)]) for run in runs
    ]
    for thread in threads:
        thread.start()
    seen = set()
    while any(thread.is_alive() for thread in threads):
        if (tmp_path / "subject.jsonl").exists():
            seen.add(read(tmp_path / "subject.jsonl").exit_code)
    for thread in threads:
        thread.join()
    assert seen <= {0}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "subject.jsonl"]


def test_targets_of_one_name_have_a_record_each(tmp_path: Path) -> None:
    suite_of = {"version": "1", "digest": "0", "vectors": 0}
    runs = [Run(name, suite=suite_of) for name in ("cmd:a b", "cmd:a-b", "cmd:a b")]
    paths = write(runs, tmp_path, "json")
    assert [read(path).target for path in paths] == [run.target for run in runs]


SIGNALLED = """
import os, signal, sys
from gspo_conformance import Capabilities, FunctionTarget

def answer(case):
    if case.id == "ratio/sequence-opposite-tokens":
        os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))
    return {}

target = FunctionTarget("signalled", answer, Capabilities.everything())
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_a_run_with_reports_that_say_so(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    (tmp_path / "signalled.py").write_text(SIGNALLED, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIGNAL", name)
    # A shell starts what runs in the background with Ctrl-C ignored; here it has to count.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    words = ["check", "signalled:target", "--in-process", "-k", "ratio/sequence-*", "--format", "junit", "--out", "out"]
    assert main(words) == 3
    assert "interrupted" in capsys.readouterr().out
    found = read(tmp_path / "out" / "signalled-target.jsonl")
    assert (found.complete, found.failure, found.exit_code) == (False, "interrupted", 3)
    for format in FORMATS:
        assert "interrupted" in render([found], format), format
    assert "interrupted" in (tmp_path / "out" / "report.xml").read_text(encoding="utf-8")
    assert found.results


def test_ctrl_c_during_the_diagnosis_keeps_the_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(run: Run, chosen: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("gspo_conformance.diagnosis.diagnose", interrupt)
    assert main(["check", "mutant:aggregation.token-mean", "-k", "aggregation/square-*"]) == 3
    assert "interrupted" in capsys.readouterr().out


def test_ctrl_c_elsewhere_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("gspo_conformance.commands.explain.run", interrupt)
    assert main(["explain", "GSPO-RATIO-2"]) == 130
    assert capsys.readouterr().err == "gspo explain: interrupted\n"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("2>&-", 0),
        (">&-", 0),
        ("<&- >&- 2>&-", 0),
        (">/dev/full", 3),
        (">/dev/full 2>/dev/full", 3),
        ("| sleep 0", 141),
    ],
)
def test_streams_that_are_closed_or_full_make_no_target_non_conforming(words: str, code: int) -> None:
    command = f"set -o pipefail; {sys.executable} -m gspo_conformance.cli check numpy -k ratio/sequence-ragged {words}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert done.stderr == ("gspo check: No space left on device\n" if words == ">/dev/full" else "")


def test_a_defect_of_the_suite_is_no_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gspo_conformance.commands.check.run", lambda arguments: 1 // 0)
    assert main(["check", "numpy"]) == 3
    told = capsys.readouterr().err
    assert told.startswith("gspo check: a defect of gspo itself")
    assert "ZeroDivisionError" in told


LOCALES = {
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin": {"PYTHONIOENCODING": "latin-1", "LC_ALL": "de_DE", "LANG": "de_DE@euro"},
    "far": {"TZ": "Pacific/Kiritimati", "LC_ALL": "tr_TR.UTF-8"},
}


@pytest.mark.parametrize("name", LOCALES)
def test_neither_locale_nor_clock_change_what_is_written(name: str, tmp_path: Path) -> None:
    words = ["check", "mutant:aggregation.token-mean", "-k", "aggregation/square-gspo", "--out", "out"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG"))}
    code = "import sys; from gspo_conformance.cli import main; sys.exit(main(sys.argv[1:]) + main(['noise', '--std', '0.05']))"
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        cwd=tmp_path,
        env=environment | LOCALES[name],
        check=False,
    )
    assert done.returncode == 1, done.stderr
    found = read(tmp_path / "out" / "mutant-aggregation.token-mean.jsonl")
    assert abs(time.time() - _seconds(found.started)) < 600
    assert "aggregation/square-gspo" in {result.id for result in found.results}
    for format in FORMATS:
        assert render([found], format)


def _seconds(stamp: str) -> float:
    from datetime import datetime

    moment = datetime.fromisoformat(stamp)
    assert moment.utcoffset() is not None
    return moment.timestamp()


def test_a_clock_that_goes_back_harms_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now - 1e6)
    found = conforming()
    assert found.seconds >= 0
    assert all(result.seconds >= 0 for result in found.results)


def test_a_flipped_byte_of_a_vector_is_found_before_it_judges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ratio").mkdir()
    file = tmp_path / "ratio" / "x.json"
    file.write_bytes(b'{"id": "ratio/x"}')
    (tmp_path / "MANIFEST").write_text(manifest.manifest_text({"ratio/x.json": file.read_bytes()}), encoding="ascii")
    monkeypatch.setattr(suite, "verify_manifest", lambda: manifest.verify_manifest(tmp_path))
    assert main(["check", "numpy", "-k", "ratio/sequence-ragged"]) == 0
    for at in (0, 8, 16):
        content = bytearray(b'{"id": "ratio/x"}')
        content[at] ^= 1
        file.write_bytes(content)
        assert main(["check", "numpy", "-k", "ratio/sequence-ragged"]) == 3
        told = capsys.readouterr().err
        assert "the vectors are not those of MANIFEST, 1 file differ" in told
        assert "ratio/x.json: its SHA-256 is not the one in MANIFEST" in told
    file.write_bytes(b'{"id":\n "ratio/x"}')
    (tmp_path / "MANIFEST").write_text(manifest.manifest_text({"ratio/x.json": file.read_bytes()}), encoding="ascii")
    file.write_bytes(b'{"id":\r\n "ratio/x"}')
    assert "its lines end in CRLF" in manifest.verify_manifest(tmp_path)[0]
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert main(["check", "numpy", "-k", "no-such-vector"]) == 3
    assert "ratio/x.json: expected a file, got something else" in capsys.readouterr().err
    (tmp_path / "MANIFEST").write_bytes(b"\xff\n")
    with pytest.raises(HarnessError, match="MANIFEST"):
        suite.check("numpy", "ratio/sequence-ragged")


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_run_twice_is_the_same_bytes(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Times are the one difference; with SOURCE_DATE_EPOCH there are none."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    words = ["check", "mutant:aggregation.token-mean", "-k", "aggregation/square-*", "--format", format, "--out"]
    for folder in ("one", "two"):
        assert main([*words, str(tmp_path / folder)]) == 1
    told = capsys.readouterr().out
    assert told[: len(told) // 2] == told[len(told) // 2 :]
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(names) == 1 + (format != "json")
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    record = tmp_path / "one" / "mutant-aggregation.token-mean.jsonl"
    first, *rest = record.read_text(encoding="utf-8").splitlines()
    assert json.loads(first)["started"] == "2023-11-14T22:13:20+00:00"
    assert {json.loads(line)["seconds"] for line in rest} == {0.0}


def test_a_second_ctrl_c_ends_the_waiting_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def interrupt(self: Program, *_: Any) -> Any:
        assert self._process is not None
        popen = self._process._popen
        started.append(popen)
        plain, again = popen.wait, iter([True])
        monkeypatch.setattr(popen, "wait", lambda *limit: interrupted() if next(again, False) else plain(*limit))
        return interrupted()

    def interrupted() -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Program, "ask", interrupt)
    found = run_vectors(Program("speaker", [sys.executable, "-S", "-E", str(SPEAKER)]), SUITE)
    assert (found.complete, found.failure, found.exit_code) == (False, "interrupted", 3)
    assert started[0].returncode is not None
