"""`gspo lint`: reading configurations without executing them, the rules, the reports. Dialects are tested in trainers/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gspo_conformance.cli import main
from gspo_conformance.lint.configuration import read_configuration
from gspo_conformance.lint.formula import formula
from gspo_conformance.lint.rules import findings
from gspo_conformance.lint.scalar import parse_value
from gspo_conformance.trainers.dialect import PAPER, Reading
from gspo_conformance.words import UsageError
from gspo_core import Correction, Objective

from .linted import lint, rules, written

FAITHFUL = {
    "actor_rollout_ref.actor.policy_loss.loss_mode": "gspo",
    "actor_rollout_ref.actor.clip_ratio_low": 3e-4,
    "actor_rollout_ref.actor.clip_ratio_high": 4e-4,
    "actor_rollout_ref.actor.loss_agg_mode": "seq-mean-token-mean",
    "actor_rollout_ref.rollout.n": 8,
    "algorithm.adv_estimator": "grpo",
}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.yaml", "a:\n  b: 3e-4\n  c: true\nd: [1, 2]\ne: null\n"),
        ("c.json", '{"a": {"b": 0.0003, "c": true}, "d": [1, 2], "e": null}'),
        ("c.toml", 'e = "null"\nd = [1, 2]\n[a]\nb = 3e-4\nc = true\n'),
    ],
)
def test_trees_become_flat_settings(tmp_path: Path, name: str, text: str) -> None:
    """Hunts `3e-4` read as a string, which is what YAML 1.1 makes of it."""
    found = read_configuration([written(tmp_path, name, text)]).settings
    assert found == {"a.b": 3e-4, "a.c": True, "d": [1, 2], "e": None}


def test_a_python_call_is_read_and_not_run(tmp_path: Path) -> None:
    text = (
        "raise SystemExit('executed')\n"
        "args = trl.GRPOConfig(epsilon=3e-4, loss_type='grpo',\n    beta=compute(), **more)\n"
    )
    found = read_configuration([written(tmp_path, "c.py", text)])
    assert found.settings == {"epsilon": 3e-4, "loss_type": "grpo"}
    assert found.places["epsilon"].endswith("c.py:2")
    assert [one.rpartition(": ")[2] for one in found.computed] == ["beta", "**keywords of GRPOConfig"]


def test_a_script_with_overrides_and_flags(tmp_path: Path) -> None:
    text = "#!/bin/bash\n# a.b=9\npython -m x \\\n  a.b=1e-3 +c.d=true \\\n  --eps-clip 2e-4 --use-kl --name='x y'\n"
    found = read_configuration([written(tmp_path, "run.sh", text), "a.b=5"]).settings
    assert found == {"a.b": 5, "c.d": True, "eps_clip": 2e-4, "use_kl": True, "name": "x y"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1_000", 1000),
        ("-0.5", -0.5),
        ("True", True),
        ("None", None),
        ("none", "none"),
        ("k3", "k3"),
        ("${a.b}", "${a.b}"),
    ],
)
def test_values(text: str, value: Any) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.yaml", "a: [1", "not readable as yaml"),
        ("c.yaml", "!!python/object/apply:os.system ['true']", "not readable as yaml"),
        ("c.yaml", "- 1\n- 2\n", "expected keys and values, got a list"),
        ("c.json", "{", "not readable as json"),
        ("c.py", "x = 1\n", "no call such as GRPOConfig"),
        ("c.py", "f(", "not readable as py"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_configuration([written(tmp_path, name, text)])


def test_a_missing_file_says_so() -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_configuration(["nowhere.yaml"])


def _reading(**changes: Any) -> Reading:
    objective = {**PAPER, **changes.pop("objective", {})}
    return Reading("none", "1", objective, **{"advantages": {}, "settings": {"clip": 1}, **changes})


def _rules(reading: Reading, *severities: str) -> set[str]:
    return {one.rule for one in findings(reading) if not severities or one.severity in severities}


def test_the_paper_has_no_finding() -> None:
    assert not findings(_reading())
    assert not findings(_reading(objective={"ratio": "gspo_token"}))


@pytest.mark.parametrize(
    ("changes", "rule", "severity"),
    [
        ({"objective": {"ratio": "token"}}, "ratio", "error"),
        ({"objective": {"aggregation": {"mode": "token_mean", "constant": 1.0}}}, "aggregation", "error"),
        ({"objective": {"surrogate": {"kind": "clip", "low": 0.2, "high": 0.2}}}, "inherited-clip-range", "error"),
        (
            {"objective": {"surrogate": {"kind": "clip", "low": 0.2, "high": 0.2}}, "given": frozenset({"clip"})},
            "clip-range",
            "error",
        ),
        ({"objective": {"surrogate": {**PAPER["surrogate"], "dual": 3.0}}}, "dual-clip", "warning"),
        ({"objective": {"surrogate": {**PAPER["surrogate"], "dual": 1.0006}}}, "dual-clip", "error"),
        ({"objective": {"penalty": {"estimator": "k3", "coefficient": 0.001}}}, "penalty", "warning"),
        ({"objective": {"log_ratio_cap": 10.0}}, "log-ratio-cap", "note"),
        ({"advantages": None, "estimator": "gae"}, "advantages", "error"),
        ({"advantages": {"center": "none"}}, "group-baseline", "error"),
        ({"advantages": {"scale": "none"}}, "scale", "warning"),
        ({"advantages": {"ddof": 0}}, "ddof", "note"),
        ({"advantages": {"eps": 1e-9}}, "eps", "warning"),
        ({"whiten": True}, "whitening", "warning"),
        ({"dtype": "bfloat16"}, "dtype", "error"),
        ({"updates_per_rollout": 1}, "one-update", "error"),
    ],
)
def test_each_rule(changes: dict[str, Any], rule: str, severity: str) -> None:
    assert rule in _rules(_reading(**changes), severity)
    assert not _rules(_reading(), severity)


def test_advantages_that_a_dialect_leaves_out_are_not_called_wrong() -> None:
    """Hunts "the advantages come from group, not from the rewards of a group"."""
    assert "advantages" not in _rules(_reading(advantages=None), "error")
    assert "advantages" in _rules(_reading(advantages=None, estimator="gae"), "error")


def test_formulas() -> None:
    assert formula(PAPER).startswith("L = -1/G Σ_i min(s_i A_i, clip(s_i, 1-0.0003, 1+0.0004) A_i),  s_i = exp(mean_t")
    token = {**PAPER, "ratio": "token", "aggregation": {"mode": "token_mean", "constant": 1.0}}
    assert "1/Σ|y_i| Σ_i Σ_t min(w_it A_i" in formula(token)
    penalty = {
        "estimator": "k2",
        "coefficient": 0.1,
        "importance": "sequence",
        "aggregation": {"mode": "token_mean", "constant": 1.0},
    }
    assert " + 0.1·1/Σ|y_i| Σ_i Σ_t s_i·z²/2,  w_it" in formula(
        token | {"aggregation": PAPER["aggregation"], "penalty": penalty}
    )
    assert formula(token | {"penalty": penalty}).endswith(
        "+ 0.1·s_i·z²/2,  w_it = π_θ(y_it)/π_old(y_it), s_i = exp(mean_t log π_θ(y_it)/π_old(y_it)), z = log π_θ - log π_ref"
    )


def test_a_formula_says_what_its_weights_compare() -> None:
    cap = Correction("token", "mask", high=5.0)
    drop = Correction("geometric", "reject", low=0.9, numerator="current", negative_only=True)
    assert formula(Objective.gspo().replace(correction=(cap,)).to_dict()).endswith(
        ", ρ_it = π_old(y_it)/μ(y_it), 0 outside [0, 5]"
    )
    both = formula(Objective.gspo().replace(correction=(cap, drop)).to_dict())
    assert "Σ_t ρ1_it ρ2_it min(" in both
    assert both.endswith(
        "ρ2_it = exp(mean_t log sg[π_θ](y_it)/μ(y_it)) replaced by 1 inside and 0 outside [0.9, ∞] where A<0, else 1"
    )


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faithful = written(tmp_path, "c.json", json.dumps(FAITHFUL))
    assert main(["lint", faithful, "--dialect", "verl"]) == 0
    assert main(["lint", faithful, "--dialect", "verl", "--fail-on", "note"]) == 1
    capsys.readouterr()
    override = "actor_rollout_ref.actor.loss_agg_mode=token-mean"
    record = lint(capsys, faithful, "--dialect", "verl", override)
    assert (record["code"], rules(record, "error")) == (1, {"aggregation"})
    assert main(["lint", faithful, "--dialect", "verl", override, "--format", "sarif"]) == 1
    sarif = json.loads(capsys.readouterr().out)
    assert sarif["version"] == "2.1.0"
    assert sarif["runs"][0]["results"][0]["ruleId"] == "aggregation"


def test_the_command_teaches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, "c.json", "{}")
    assert main(["lint", path, "--dialect", "varl"]) == 2
    assert "did you mean 'verl'" in capsys.readouterr().err
    assert main(["lint", path, "--dialect", "verl", "--trainer-version", "nine"]) == 2
    assert "unknown version of verl" in capsys.readouterr().err


def test_a_release_that_is_not_known_is_read_as_the_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """verl obeys `loss_agg_mode` for gspo from 0.9.1 on."""
    keys = {
        "policy_loss.loss_mode": "gspo",
        "loss_agg_mode": "token-mean",
        "clip_ratio_low": 3e-4,
        "clip_ratio_high": 4e-4,
    }
    actor = {f"actor_rollout_ref.actor.{key}": value for key, value in keys.items()}
    path = written(tmp_path, "c.json", json.dumps(FAITHFUL | actor))
    for release, known, code in (("0.8.0", "0.9.0", 0), ("0.10.1", "0.9.1", 1)):
        assert main(["lint", path, "--dialect", "verl", "--trainer-version", release]) == code
        assert f"verl {release} is not among the versions that are known: read as {known}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("epsilon=", "epsilon = None: trl cannot mean that"),
        ("epsilon=wide", "epsilon = 'wide': trl cannot mean that"),
        ("epsilon=-1", "epsilon = -1: trl cannot mean that: ValueError: low: expected a number >= 0"),
        ("epsilon=1e999", "epsilon = inf: trl cannot mean that"),
        ("beta=x", "beta = 'x': trl cannot mean that"),
    ],
)
def test_a_value_that_no_setting_can_have_is_named(
    setting: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lint", setting, "num_generations=8", "--dialect", "trl"]) == 2
    assert message in capsys.readouterr().err


def test_a_value_that_is_none_of_the_choices_is_named_and_not_the_setting_that_makes_it_count(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Hunts `adv_estimator` blamed for a `reward_norm` that only this estimator reads."""
    words = ["adv_estimator=reinforce", "reward_norm=groups", "--dialect", "roll", "--trainer-version", "c0c0d2b1"]
    assert main(["lint", *words]) == 2
    assert "reward_norm = 'groups': roll cannot mean that" in capsys.readouterr().err


def test_sarif_spells_settings_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["actor_rollout_ref.actor.clip_ratio=3e-4", "actor_rollout_ref.actor.policy_loss.loss_mode=gspo"]
    assert main(["lint", *words, "--dialect", "verl", "--format", "sarif"]) == 1
    told = {one["ruleId"]: one["message"]["text"] for one in json.loads(capsys.readouterr().out)["runs"][0]["results"]}
    assert told["clip-range-ignored"].startswith("clip_ratio = 0.0003 never")
    assert told["advantages"].startswith("The advantages")
