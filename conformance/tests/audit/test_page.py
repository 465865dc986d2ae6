"""The page and the words of an audit hold whatever a trace says: long names, one token, ratios without bounds."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

import gspo_core as gspo
from gspo_conformance.audit import audit_trace
from gspo_conformance.audit.report import render
from gspo_conformance.reports.panel import LEFT, WIDTH

from .test_right_runs import batch, compute, write


def test_labels_of_the_axes_have_room_beside_ratios_of_any_size(tmp_path: Path) -> None:
    """Hunts -200000000000000000.0, of which the panel shows the end."""
    for at, shift in enumerate((0.0, 40.0)):
        arrays = batch(8, at, moved=1e-4)
        arrays |= {"logp": arrays["logp"] + np.float32(shift), "advantages": 1e12 * arrays["advantages"]}
        fields = {"loss": compute(gspo.Objective.gspo(), arrays)[0], "rollout": 0, "minibatch": 1}
        (folder := tmp_path / str(at)).mkdir()
        page = render(audit_trace(write(folder, [[(arrays, fields)]], objective="gspo")), "html")
        labels = re.findall(r'<text x="(\d+)"[^>]*text-anchor="end">([^<]*)</text>', page)
        assert labels
        assert all(7.2 * len(words) <= LEFT for x, words in labels if int(x) < LEFT)


def test_one_token_and_a_long_name_are_told_in_words_of_their_size(tmp_path: Path) -> None:
    arrays = {name: np.array([[-1.0]], np.float32) for name in ("logp", "old_logp")}
    arrays |= {"mask": np.array([[True]]), "advantages": np.array([1.0], np.float32)}
    arrays |= {"rewards": np.array([1.0], np.float32), "groups": np.array([0])}
    trace = write(tmp_path, [[(arrays, {"loss": -1.0, "metrics": {"a" * 200: 1.0}})]], objective="gspo")
    told = render(audit_trace(trace), "text", verbose=True)
    assert "1 step, 1 rank, 1 token\n" in told
    assert max(map(len, told.splitlines())) < 160
    assert "1 groups" not in told


@pytest.mark.parametrize("width", [331, 361, 381, 441, 460])
def test_the_words_of_a_plot_are_read_on_a_narrow_screen(width: int) -> None:
    """Hunts words of 8.7 pixels in a panel that shrinks with its figure."""
    style = (resources.files("gspo_conformance.reports") / "page.css").read_text(encoding="utf-8")
    steps = re.findall(r"@container \(max-width: (\d+)px\) \{ \.panel text \{ font-size: ([\d.]+)px", style)
    sizes = [float(size) for below, size in steps if width <= int(below)]
    assert (sizes or [12.0])[-1] * width / WIDTH >= 11


def test_long_lines_of_a_page_are_wrapped() -> None:
    """Hunts a message or a line of a traceback that runs out of the screen."""
    style = (resources.files("gspo_conformance.reports") / "page.css").read_text(encoding="utf-8")
    assert re.search(r"^pre \{.*white-space: pre-wrap; overflow-wrap: anywhere;", style, re.M)
