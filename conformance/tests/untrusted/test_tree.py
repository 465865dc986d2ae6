"""What the tree itself may do: no pickle, no YAML that builds objects, no shell, no `eval`; and `gspo` writes into --out alone."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gspo_core.tests.repository import ROOT, committed, imports

SOURCES = [path for path in committed() if path.suffix == ".py"]
# Mutation testing runs what it made of this package's own source, and reads nothing else.
RUNS_MUTANTS = ROOT / ".ci" / "grafts.py"
SHIPPED = [path for path in SOURCES if "tests" not in path.relative_to(ROOT).parts and path != RUNS_MUTANTS]
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle", "_pickle"}
CALLS = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all"}
WORDS = re.compile(r"pickle|dill|joblib|shelve|marshal|\beval\(|\bexec\(|system|popen|yaml|shell=|torch\.load|Loader")


def _calls(path: Path) -> list[tuple[str, ast.Call]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def _forbidden(path: Path) -> list[str]:
    if not WORDS.search(path.read_text(encoding="utf-8")):
        return []
    found = [f"import {name}" for name in imports(path) if name.split(".")[0] in PICKLES]
    for name, call in _calls(path):
        options = {word.arg: ast.unparse(word.value) for word in call.keywords}
        if name in CALLS or options.get("shell") == "True" or options.get("allow_pickle") == "True":
            found.append(f"{name} in line {call.lineno}")
        if name == "torch.load" and options.get("weights_only") != "True":
            found.append(f"torch.load without weights_only in line {call.lineno}")
        if name.endswith(("yaml.Loader", "UnsafeLoader", "FullLoader")):
            found.append(f"{name} in line {call.lineno}")
    return found


def test_nothing_that_is_shipped_can_be_made_to_run_what_it_reads() -> None:
    assert len(SHIPPED) > 200
    assert {str(path.relative_to(ROOT)): found for path in SHIPPED if (found := _forbidden(path))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "yaml.load(x)",
        "eval(x)",
        "run(x, shell=True)",
        "np.load(x, allow_pickle=True)",
        "torch.load(x)",
    ],
)
def test_the_search_finds_what_it_looks_for(line: str, tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(line, encoding="utf-8")
    assert _forbidden(path)


WATCHED = """
import os, sys

def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)) and isinstance(arguments[2], int):
        if arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            print("WROTE", os.path.abspath(os.fsdecode(arguments[0])), file=sys.__stderr__)
    elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.chmod", "shutil.rmtree"):
        print("WROTE", os.path.abspath(os.fsdecode(arguments[0])), file=sys.__stderr__)
    elif event == "os.rename":
        for path in arguments[:2]:
            print("WROTE", os.path.abspath(os.fsdecode(path)), file=sys.__stderr__)

sys.addaudithook(watch)
from gspo_conformance.cli import main
sys.exit(main(sys.argv[1:]))
"""
VILLAIN = Path(__file__).with_name("villain.py")


def test_a_run_writes_into_its_folder_and_nowhere_else(tmp_path: Path) -> None:
    """So a checkout may be read-only; the folder has a space and letters of other alphabets in its name."""
    room = tmp_path / "ein Ordner \N{LATIN SMALL LETTER U WITH DIAERESIS}\N{CJK UNIFIED IDEOGRAPH-4E2D}"
    room.mkdir()
    program = room / "the villain.py"
    program.write_bytes(VILLAIN.read_bytes())
    out = room / "the report"
    words = ["check", f"cmd:{sys.executable} -S -E '{program}' 'markup in a message'", "-k", "aggregation/square-gspo"]
    words += ["--format", "html", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-B", "-c", WATCHED, *words], capture_output=True, text=True, cwd=room, check=False
    )
    assert done.returncode == 3, done.stderr
    written = {line.removeprefix("WROTE ") for line in done.stderr.splitlines() if line.startswith("WROTE ")}
    assert len(written) >= 4
    assert {path for path in written if not path.startswith(str(out)) and path != "/dev/null"} == set()
    assert sorted(path.suffix for path in out.iterdir()) == [".html", ".jsonl"]
