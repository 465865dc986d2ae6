"""`gspo vectors`: list, show, lint, trace, and a message that names the near id."""

import pytest

from gspo_conformance import traceability
from gspo_conformance.cli import main
from gspo_conformance.formats import VECTORS, load_vectors


def test_list_names_every_vector_and_counts_levels(capsys):
    assert main(["vectors", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(load_vectors()) + 1
    assert lines[-1].startswith(f"{len(load_vectors())} vectors: ")


@pytest.mark.parametrize("pattern", ["sampling", "sampling/*", "GSPO-REWARD-6", "bounds-closed"])
def test_list_takes_areas_ids_clauses_and_flags(capsys, pattern):
    assert main(["vectors", "list", pattern]) == 0
    assert "sampling/bounds-strict" in capsys.readouterr().out


def test_show_prints_the_file(capsys):
    assert main(["vectors", "show", "sampling/bounds"]) == 0
    assert capsys.readouterr().out == (VECTORS / "sampling" / "bounds.json").read_text("utf-8")


@pytest.mark.parametrize("words", [["show", "sampling/bonds"], ["list", "no-such-thing"]])
def test_an_unknown_vector_is_a_usage_error(capsys, words):
    assert main(["vectors", *words]) == 2
    message = capsys.readouterr().err
    assert "'sampling/bounds'" in message if words[0] == "show" else "no-such-thing" in message


def test_trace_writes_the_table_and_finds_a_stale_one(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(traceability, "PAGE", tmp_path / "traceability.md")
    assert main(["vectors", "trace", "--check"]) == 1
    assert main(["vectors", "trace"]) == 0
    assert main(["vectors", "trace", "--check"]) == 0
    assert (tmp_path / "traceability.md").read_text("utf-8") == traceability.page()
    (tmp_path / "traceability.md").write_text("stale", encoding="utf-8")
    assert main(["vectors", "trace", "--check"]) == 1


def test_trace_outside_of_a_checkout_is_a_usage_error(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(traceability, "PAGE", tmp_path / "nowhere" / "traceability.md")
    assert main(["vectors", "trace"]) == 2
    assert "checkout" in capsys.readouterr().err
