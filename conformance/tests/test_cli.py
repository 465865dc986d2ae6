"""The command line: exit codes, what goes to stdout and what to stderr, errors that teach, and a start without NumPy."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from gspo_conformance.clauses import clauses
from gspo_conformance.cli import COMMANDS, main
from gspo_conformance.flags import read_flags
from gspo_conformance.formats import load_vectors
from gspo_conformance.mutants import mutants

from .speaker import main as speaker
from .test_wrap import MLX

SPEAKER = f"cmd:{sys.executable} -S {speaker.__code__.co_filename}"
FEW = ("-k", "ratio/sequence-*")


def gspo(*words: str) -> int:
    return main(words)


@pytest.fixture
def output(capsys: pytest.CaptureFixture[str]):
    def read(*words: str, code: int = 0) -> str:
        assert gspo(*words) == code, capsys.readouterr()
        captured = capsys.readouterr()
        return captured.out if code != 2 else captured.err

    return read


def test_the_built_in_numpy_target_conforms_in_every_vector(output) -> None:
    begin = time.perf_counter()
    found = output("check", "numpy")
    assert re.search(r"conforming: \d+ pass; worst K \d\.\d\d", found), found
    assert "unsupported" not in found
    assert time.perf_counter() - begin < 30


def test_torch_and_jax_agree_on_some_of_them(output) -> None:
    found = output(
        "check", "torch", "jax", "-k", "ratio/sequence-ragged", "-k", "gradient/coefficient", "--dtype", "float32"
    )
    assert found.count("  conforming: 2 pass") == 2
    assert "all targets" in found


def test_a_wrong_implementation_is_named_and_explained(output) -> None:
    found = output("check", "mutant:aggregation.token-mean", "-k", "aggregation/lengths*", code=1)
    assert "NOT conforming" in found
    assert "diagnosis" in found
    assert "`aggregation.token-mean` (GSPO-AGG-1)" in found
    assert "next        gspo explain aggregation/lengths" in found


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["chek"], "unknown command 'chek'; did you mean 'check'?"),
        (["check", "nunpy"], "unknown target 'nunpy'; did you mean 'numpy'?"),
        (["check", "numpy", "-k", "ratio/sequence-ragedd"], "did you mean 'ratio/sequence-ragged'?"),
        (["check", "numpy", "--known", "absent.txt"], "--known absent.txt: No such file"),
        (
            ["explain", "GSPO-AGG-99"],
            "no clause, vector, flag or mutant is called 'GSPO-AGG-99'; did you mean 'GSPO-AGG-",
        ),
        (["explain", "token-maen"], "did you mean 'token-mean'?"),
        (["report", "absent.jsonl"], "absent.jsonl: No such file"),
        (["new-target", "below/numpy"], "expected a name of its own, got 'numpy', which Python has already"),
        (["new-target", "import"], "expected a name of its own, got 'import', which Python has already"),
        (["check", "cmd:node 'mine.js"], "expected a command line as a shell reads it: No closing quotation"),
        (["check", "numpy", "--known", "/dev/zero"], "expected a list of known failures of at most 1000000 bytes"),
        (["check", "numpy", "--known", sys.executable], "expected a list of known failures, in UTF-8"),
        (["new-target", "not-a-name"], "expected a name that can be imported, got 'not-a-name'"),
    ],
)
def test_a_mistake_of_usage_is_exit_code_2_and_one_line(output, words: list[str], message: str) -> None:
    error = output(*words, code=2)
    assert message in error
    assert error.count("\n") == 1


def test_a_harness_that_fails_is_exit_code_3_and_the_other_targets_are_checked(output) -> None:
    found = output("check", f"{SPEAKER} banner", "numpy", *FEW, code=3)
    assert "harness failed" in found
    assert "conforming: " in found


@pytest.mark.parametrize(
    "words", [("--timeout", "0"), ("--timeout", "nan"), ("--timeout", "inf"), ("--jobs", "0"), ("--jobs", "9999")]
)
def test_numbers_that_no_clock_and_no_machine_has_are_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        gspo("check", "numpy", *words)
    assert stop.value.code == 2
    assert f"argument {words[0]}: expected " in capsys.readouterr().err


def test_exit_code_2_comes_from_the_parser_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        gspo("check", "numpy", "--dtype", "float16")
    assert stop.value.code == 2
    assert "float16" in capsys.readouterr().err


def test_known_failures_turn_1_into_0_and_back(output, tmp_path: Path) -> None:
    known = tmp_path / "known.txt"
    known.write_text("aggregation/lengths*  # token mean\n", encoding="utf-8")
    chosen = ("-k", "aggregation/lengths*", "--known", str(known))
    assert "expected-failure" in output("check", "mutant:aggregation.token-mean", *chosen)
    assert "unexpected-pass" in output("check", "numpy", *chosen, code=1)


def test_formats_go_to_stdout_or_into_a_folder_with_the_records(output, tmp_path: Path) -> None:
    first, *_ = output("check", "numpy", *FEW, "--format", "json").splitlines()
    assert json.loads(first)["type"] == "header"
    ElementTree.fromstring(output("check", "numpy", *FEW, "--format", "junit"))
    assert output("check", "numpy", *FEW, "--format", "html").startswith("<!doctype html>")
    assert output("check", "numpy", *FEW, "--format", "md").startswith("# GSPO conformance")
    summary = output("check", "numpy", f"{SPEAKER}", *FEW, "--format", "html", "--out", str(tmp_path / "out"))
    assert "all targets" in summary
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert [name for name in names if name.endswith(".jsonl")] == [name for name in names if name != "report.html"]
    assert len(names) == 3


def test_records_are_merged_into_one_report(output, tmp_path: Path) -> None:
    for i, area in enumerate(("ratio/sequence*", "ratio/token*")):
        output("check", "numpy", "-k", area, "--out", str(tmp_path / str(i)))
    merged = output("report", str(tmp_path / "0"), str(tmp_path / "1"))
    assert merged.count("numpy (") == 1
    out = tmp_path / "report.html"
    output("report", str(tmp_path / "0"), str(tmp_path / "1"), "--format", "html", "--out", str(out))
    assert "ratio/" in out.read_text(encoding="utf-8") or "RATIO-2" in out.read_text(encoding="utf-8")
    record = tmp_path / "0" / "numpy.jsonl"
    record.write_text("".join(record.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")
    assert "the record is cut short" in output("report", str(record), code=3)


TERMINATED = """
import signal
from gspo_conformance import Capabilities, FunctionTarget

def answer(case):
    if case.id == "ratio/sequence-opposite-tokens":
        signal.raise_signal(signal.SIGTERM)
    return {}

target = FunctionTarget("terminated", answer, Capabilities.everything())
"""


def test_a_run_that_is_ended_from_outside_reports_what_it_has(output, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "terminated.py").write_text(TERMINATED, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    found = output("check", "terminated:target", "numpy", "-k", "ratio/sequence-*", "--in-process", code=3)
    assert re.search(r"harness failed: \d+ fail", found)
    assert "  interrupted" in found
    assert "numpy" not in found
    assert signal.getsignal(signal.SIGTERM) is before


def test_smoke_tells_the_adapter_from_the_implementation(output) -> None:
    assert "the adapter is right" in output("check", "numpy", "--smoke")
    assert "the adapter is right" in output("check", "mutant:aggregation.token-mean", "--smoke")
    assert "the adapter is NOT right" in output("check", f"{SPEAKER} too-few", "--smoke", code=3)
    assert f"next: gspo check '{SPEAKER}'" in output("check", SPEAKER, "--smoke")


def test_what_the_help_gives_as_an_example_can_be_explained(output) -> None:
    """Hunts the name of a vector that there was."""
    from gspo_conformance.commands import explain

    names = re.findall(r"\(([^)]+)\)", explain.__doc__ or "")
    assert len(names) == 4
    for name in (word for words in names for word in words.split(", or ")):
        assert main(["explain", name]) == 0, name


def test_everything_that_has_a_name_can_be_explained(output) -> None:
    some = [clause.id for clause in clauses().values()][::7]
    some += [vector.id for vector in load_vectors()][::61]
    some += [*read_flags()][::9]
    some += [mutant.name for mutant in mutants()][::31]
    found = output("explain", *some)
    for name in some:
        assert re.search(rf"^{re.escape(name)}  \S", found, flags=re.M), name


def test_an_explanation_has_words_and_numbers(output) -> None:
    vector = output("explain", "aggregation/lengths-1-3-gspo")
    for words in (
        "MUST, policy_loss in float32 and float64",
        "token-mean: ",
        '"ratio": "sequence"',
        "logp  float32 [2, ",
    ):
        assert words in vector
    assert re.search(r"loss  to 16 u × scale, scale up to [\d.e-]+", vector)
    clause = output("explain", "agg-1")
    assert clause.startswith("GSPO-AGG-1  ")
    assert "mutants  aggregation." in clause
    refusing = next(vector.id for vector in load_vectors() if vector.refuses)
    assert "an error that names `" in output("explain", refusing)


def test_a_new_target_in_another_folder_is_found_from_where_it_says(output, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert "then\n         gspo check --smoke below.mine:target\n" in output(
        "new-target", "below/mine", "--framework", "numpy"
    )
    beside = output("new-target", "../beside/mine", "--framework", "numpy")
    assert "then\n         cd ../beside\n         gspo check --smoke mine:target\n" in beside
    assert "the adapter is right" in output("check", "--smoke", "below.mine:target")


@pytest.mark.parametrize("framework", ["torch", "jax", "numpy", MLX])
def test_a_new_target_conforms_as_it_is_written(
    output, framework: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"mine_{framework}"
    assert f"gspo check --smoke {name}:target" in output("new-target", name, "--framework", framework)
    assert "the adapter is right" in output("check", "--smoke", f"{name}:target")
    chosen = ("-k", "surrogate/paper-above-positive-gspo", "-k", "gradient/coefficient", "-k", "mask/nan-trailing")
    assert "  conforming: " in output("check", f"{name}:target", *chosen, "--dtype", "float32")
    assert "exists; --force overwrites it" in output("new-target", name, code=2)
    compile((tmp_path / f"{name}.py").read_text(encoding="utf-8"), name, "exec")


def test_a_new_target_in_another_language(output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "gspo check 'cmd:node mine.js'" in output("new-target", "mine", "--language", "node")
    assert (tmp_path / "mine.js").read_text(encoding="utf-8").startswith("// GSPO in plain JavaScript")
    output("new-target", "mine", "--language", "any")
    page = (tmp_path / "mine.md").read_text(encoding="utf-8")
    assert page.startswith("# The protocol")
    links = re.findall(r"\]\(([^)#]+)", page)
    assert links
    assert all((tmp_path / link).is_file() for link in links), links


def test_help_lists_every_command_and_imports_neither_numpy_nor_a_framework() -> None:
    code = "import sys; from gspo_conformance.cli import main; main(['--help']); print(*sys.modules)"
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.perf_counter() - begin < 5
    *shown, modules = done.stdout.splitlines()
    for name in COMMANDS:
        assert any(f"gspo {name} " in line for line in shown)
    slow = {"ast", "asyncio", "dataclasses", "difflib", "importlib.metadata", "inspect", "subprocess", "tempfile"}
    assert not ({"numpy", "torch", "jax", "mpmath", "jsonschema"} | slow) & set(modules.split())


def test_the_core_alone_is_told_what_to_install() -> None:
    code = "import sys; sys.modules['numpy'] = None; from gspo_conformance.cli import main; sys.exit(main(['check', 'numpy']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "gspo check: needs numpy, which is not installed: pip install 'gspo[conformance]'\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        gspo(name, "--help")
    assert stop.value.code == 0
    assert f"usage: gspo {name}" in capsys.readouterr().out


def test_an_unknown_vector_is_answered_in_a_screenful(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vectors", "show", "nope"]) == 2
    told = capsys.readouterr().err
    assert "unknown vector 'nope'; expected one of advantage/" in told
    assert told.rstrip().endswith("more")
    assert len(told) < 4000


def test_paragraphs_fit_a_narrow_terminal_and_a_pipe_has_no_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert gspo("noise", "--std", "0.05", "--length", "512") == 0
    piped = capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert gspo("noise", "--std", "0.05", "--length", "512") == 0
    narrow = capsys.readouterr().out
    assert narrow.split() == piped.split()
    longest = [max(map(len, text[text.index("verdict") :].splitlines())) for text in (piped, narrow)]
    assert longest[0] > 80
    assert longest[1] <= 60
