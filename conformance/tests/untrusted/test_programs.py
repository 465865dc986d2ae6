"""A program that means harm: every vector has its verdict, in bounded time, memory and words, and none of them passes."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path

import pytest

from gspo_conformance import program, protocol
from gspo_conformance.asking import MAX_DETAIL, MAX_REASON
from gspo_conformance.program import Program
from gspo_conformance.protocol import ProtocolError, decode, read_hello, read_reply
from gspo_conformance.reports import FORMATS, render
from gspo_conformance.reports.reading import read
from gspo_conformance.run import PASS, Run
from gspo_conformance.runner import Options, run_vectors

from ..small import loss_vector
from .villain import HELLO, MODES

SUITE = [loss_vector(f"aggregation/{name}", dtype=["float32"]) for name in ("one", "two")]
SLOW = {"silence", "silence on a closed pipe", "deaf", "empty lines without end", "a child that stays"}


def run(mode: str) -> Run:
    words = [sys.executable, "-S", "-E", str(Path(__file__).with_name("villain.py")), mode]
    return run_vectors(Program("villain", words), SUITE[:1] if mode in SLOW else SUITE, Options(limit=0.4))


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "_GRACE", 0.2)


@pytest.mark.parametrize("mode", MODES)
def test_every_vector_has_a_verdict_and_none_passes(mode: str, tmp_path: Path) -> None:
    found = run(mode)
    assert found.complete, found.failure
    assert found.exit_code in (1, 3)
    assert PASS not in found.counts
    assert sum(found.counts.values()) == len(SUITE[:1] if mode in SLOW else SUITE)
    for result in found.results:
        assert result.reason
        assert len(result.reason) < MAX_REASON + 10
        assert len(result.detail) <= MAX_DETAIL
        assert "\n" not in result.reason
        assert all(item.got is None or item.got.size <= 4096 for item in result.judged)
    for format in FORMATS:
        assert render([found], format).encode("utf-8")
    path = tmp_path / "run.jsonl"
    path.write_text(render([found], "json"), encoding="utf-8")
    assert render([read(path)], "json") == render([found], "json")
    assert not list(Path.cwd().glob("pwned"))


def test_a_line_is_never_longer_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "MAX_LINE", 2**16)
    assert run("a line without end").results[0].reason == "the program wrote a line of more than 65536 bytes"


LINES = {
    "lists": b'{"seq":1,"outputs":{"loss":[' + b"[]," * 50_000 + b"[]]}}",
    "numbers": b'{"seq":1,"outputs":{"loss":[' + b"0," * 500_000 + b"0]}}",
    "words": b'{"seq":1,"outputs":{"loss":[' + b'"nan",' * 150_000 + b'"nan"]}}',
    "names": b'{"seq":1,"outputs":{' + b",".join(b'"%d":0' % i for i in range(100_000)) + b"}}",
}


@pytest.mark.parametrize("kind", LINES)
def test_the_memory_of_an_answer_is_a_small_multiple_of_its_line(kind: str) -> None:
    line = LINES[kind]
    tracemalloc.start()
    try:
        read_reply(decode(line))
    except ProtocolError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 64 * len(line)
    assert protocol.MAX_LINE <= 2**24


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version: this suite speaks 1, the program 2"),
        ({"implementation": {"name": "x" * 2000}}, "at most 1000 characters"),
        ({"implementation": {str(i): "x" for i in range(200)}}, "at most 100 versions"),
        ({"capabilities": {"operations": ["x" * 100_000]}}, "unknown 'xxx"),
        ({"capabilities": {"x" * 100_000: []}}, "unknown 'xxx"),
        ({"capabilities": {"objectives": [{}] * 2000}}, "at most 1000 objectives"),
        ({"capabilities": {"gradient": "y" * 100_000}}, "expected true or false"),
    ],
)
def test_a_handshake_is_refused_in_one_short_sentence(change: dict[str, object], message: str) -> None:
    with pytest.raises(ProtocolError, match=message) as error:
        read_hello(HELLO | {"implementation": {"name": "x"}} | change)
    assert len(str(error.value)) < 600


def test_a_handshake_is_a_short_line() -> None:
    code = "import sys; sys.stdout.write('{' + ' ' * 2**20 + '}' + chr(10)); sys.stdout.flush(); sys.stdin.read()"
    found = run_vectors(Program("long", [sys.executable, "-S", "-E", "-c", code]), SUITE)
    assert found.failure == "handshake: expected at most 1048576 bytes, got 1048579"
