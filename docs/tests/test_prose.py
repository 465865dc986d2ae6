"""Numbers that a page says in words are those of the table beside them; verdicts that it quotes are those of the command."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gspo_conformance import check, render
from gspo_conformance.cli import main

DOCS = Path(__file__).resolve().parents[1]
MIB = 2**20


def _sizes() -> list[dict[str, dict[str, Any]]]:
    """The measured rows of every size in which no response is clipped, by path."""
    rows = json.loads((DOCS / "benchmarks" / "linear.json").read_text(encoding="utf-8"))["rows"]
    sizes: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        if "seconds" in row and not row["clipped"]:
            sizes.setdefault((row["vocabulary"], row["batch"], row["length"]), {})[row["path"]] = row
    return list(sizes.values())


def test_the_fused_page_says_the_ranges_of_its_table() -> None:
    """Hunts a table that was measured again under a text that was not."""
    page = " ".join((DOCS / "fused.md").read_text(encoding="utf-8").split())
    sizes = _sizes()
    whole = [size for size in sizes if "naive" in size]
    by_name = {32_000: "holds {} to {} MiB at V = 32,000", 151_936: "and {} to {} MiB at V = 151,936"}
    for vocabulary, text in by_name.items():
        held = [_held(size["gspo recompute"]) for size in sizes if size["gspo"]["vocabulary"] == vocabulary]
        assert text.format(min(held), max(held)) in page
    for path, text in (
        ("gspo", "({:.2f} to {:.2f} of it)"),
        ("gspo recompute", "in {:.2f} to {:.2f} of the time of all logits"),
        ("gspo single pass", "up to twice that, in {:.2f} to {:.2f}."),
    ):
        shares = [size[path]["processor_seconds"] / size["naive"]["processor_seconds"] for size in whole]
        assert text.format(min(shares), max(shares)) in page
    held = [_held(size["gspo"]) for size in sizes]
    assert f"less memory than Liger: {min(held)} to {max(held)} MiB" in page
    assert all(_held(size["gspo"]) < _held(size["liger"]) for size in sizes)


def _held(row: dict[str, Any]) -> int:
    """MiB beyond inputs and gradients."""
    return round((row["peak_bytes"] - row["gradient_bytes"]) / MIB)


def test_the_page_of_benchmarks_says_the_ranges_of_its_table() -> None:
    """Hunts a table that was measured again under a text that was not."""
    page = " ".join((DOCS / "benchmarks" / "index.md").read_text(encoding="utf-8").split())
    rows = json.loads((DOCS / "benchmarks" / "loss.json").read_text(encoding="utf-8"))["rows"]
    own = {"gspo_torch", "compiled", "autograd", "stream"}
    for size, text in (
        ((64, 4096), "{:.2f} to {:.2f} times the processor time of `gspo_torch` at 64 responses of 4,096 tokens"),
        ((256, 16384), "{:.2f} to {:.2f} times at 256 of 16,384"),
    ):
        found = [
            row["ratio"]
            for row in rows
            if (row["batch"], row["length"]) == size and not row["packed"] and row["path"] not in own
        ]
        assert text.format(min(found), max(found)) in page


def test_every_page_quotes_the_verdict_that_gspo_check_prints() -> None:
    """Hunts a diagnosis that was reworded, or vectors that were added, under a quotation of old; `...` stands for what is left out."""
    block = re.compile(
        r"```console\n\$ gspo check my_trainer:target\n(.*?)```|```console\n(  NOT conforming.*?)```", re.DOTALL
    )
    names: dict[str, Any] = {}
    page = (DOCS / "check.md").read_text(encoding="utf-8")
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], names)
    printed = render([check(names["target"])], "text")
    for path in (DOCS / "check.md", DOCS / "index.md", DOCS.parent / "README.md"):
        quoted = next("".join(found.groups("")) for found in block.finditer(path.read_text(encoding="utf-8")))
        lines = [line for line in quoted.splitlines() if line.strip(" .") and not line.startswith("my_trainer")]
        wrong = [line for line in lines if not re.search(re.escape(line).replace(r"\.\.\.", ".*"), printed)]
        assert (path.name, wrong) == (path.name, [])
        assert len(lines) > 3


def test_the_guide_quotes_what_the_lint_says_of_its_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (DOCS / "check.md").read_text(encoding="utf-8")
    script, quoted = page.split("$ cat run.sh\n")[1].split("```")[0].split("$ gspo lint run.sh\n...\n")
    (tmp_path / "run.sh").write_text(script, encoding="utf-8")
    assert main(["lint", str(tmp_path / "run.sh")]) == 1
    assert quoted.removesuffix("...\n") in capsys.readouterr().out
