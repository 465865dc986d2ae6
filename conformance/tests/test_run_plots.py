"""The figures of a run: well-formed, inside their frame, styled in both schemes, honest about what was not recorded."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from gspo_conformance.noise.analysis import Analysis, analyse
from gspo_conformance.reports import panel, run_plots
from gspo_conformance.reports.run_plots import figures
from gspo_core import Objective

from .audit.simulated import Run

CSS = (Path(run_plots.__file__).with_name("page.css")).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    return analyse(Run(std=0.05, bias=-1e-3, drift=3e-4, engine=0.04).write(tmp_path_factory.mktemp("noisy")))


def parsed(run: Analysis) -> ElementTree.Element:
    return ElementTree.fromstring(str(figures(run)))


def test_four_figures_without_scripts_or_requests(noisy: Analysis) -> None:
    page = parsed(noisy)
    assert [one.text for one in page.iter("h4")] == [
        "Ratios against the range",
        "Clip fraction, observed and predicted",
        "Spread of log s against length",
        "Advantages by group",
    ]
    assert not [one for one in page.iter() if one.tag in ("script", "image", "use", "foreignObject", "style", "a")]
    assert not re.search(r"href|url\(|\bon\w+=|style=", str(figures(noisy)))
    assert all(svg.find("title") is not None for svg in page.iter("svg"))


def test_every_shape_is_inside_its_frame(noisy: Analysis) -> None:
    for svg in parsed(noisy).iter("svg"):
        for one in svg.iter():
            xs = [float(one.get(name)) for name in ("x", "x1", "x2", "cx") if one.get(name)]
            ys = [float(one.get(name)) for name in ("y", "y1", "y2", "cy") if one.get(name)]
            for point in (one.get("points") or "").split():
                xs.append(float(point.split(",")[0]))
                ys.append(float(point.split(",")[1]))
            xs += [xs[0] + float(one.get("width"))] if one.tag == "rect" else []
            ys += [ys[0] + float(one.get("height"))] if one.tag == "rect" else []
            assert all(0 <= x <= panel.WIDTH for x in xs), ElementTree.tostring(one)
            assert all(0 <= y <= panel.HEIGHT for y in ys), ElementTree.tostring(one)


def test_every_class_has_a_rule_and_every_hue_a_light_and_a_dark_value(noisy: Analysis) -> None:
    used = {name for one in parsed(noisy).iter() for name in (one.get("class") or "").split()}
    assert {"up", "down", "noise", "learned", "engine", "limit", "model"} <= used
    for name in used:
        assert re.search(rf"\.{name}\b", CSS), name
    for hue in re.findall(r"--hue: var\((--\w+)\)", CSS):
        assert len(re.findall(rf"{hue}: #", CSS)) == 2, hue


def test_solid_is_what_the_gate_closes(noisy: Analysis) -> None:
    first = next(parsed(noisy).iter("svg"))
    bounds = sorted(
        float((line.get("points") or "").split(",")[1].split()[0])
        for line in first.iter("polyline")
        if line.get("class") == "limit"
    )
    for one in first.iter("rect"):
        top, bottom = float(one.get("y")), float(one.get("y")) + float(one.get("height"))
        kind = one.get("class")
        if kind == "up":
            assert bottom <= bounds[0] + 0.2
        if kind == "down":
            assert top >= bounds[1] - 0.2


def test_the_bars_are_the_clip_fractions(noisy: Analysis) -> None:
    svg = list(parsed(noisy).iter("svg"))[1]
    heights = {}
    for one in svg.iter("rect"):
        heights[one.get("x")] = heights.get(one.get("x"), 0) + float(one.get("height"))
    observed = [one.observed for one in noisy.minibatches]
    assert list(heights.values()) == pytest.approx(
        [height * max(heights.values()) / max(observed) for height in observed], abs=0.5
    )
    marks = [one for one in svg.iter("polyline") if one.get("class") == "mark"]
    assert len(marks) == len(observed) == 4


def test_what_was_not_recorded_is_not_drawn(tmp_path: Path) -> None:
    unnumbered = analyse(Run(std=0.05, numbered=False).write(tmp_path / "a"))
    assert [one.text for one in parsed(unnumbered).iter("h4")] == ["Advantages by group"]
    aimless = parsed(analyse(Run(std=0.05, objective=None).write(tmp_path / "b")))
    assert not [one for one in aimless.iter("polyline") if one.get("class") == "limit"]
    tokens = parsed(analyse(Run(std=0.05, objective=Objective.grpo().to_dict()).write(tmp_path / "c")))
    assert "geometric mean" in "".join(one.text or "" for one in tokens.iter("figcaption"))


def test_exact_ratios_and_silent_groups_draw(tmp_path: Path) -> None:
    page = parsed(analyse(Run(inert=True, silent=1.0).write(tmp_path)))
    assert [one for one in page.iter("rect") if one.get("class") == "silent"]
    assert "100" in "".join(one.text or "" for one in page.iter("figcaption"))
