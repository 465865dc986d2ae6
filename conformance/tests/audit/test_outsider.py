"""Traces by strangers: what is right agrees, what is wrong is named, and nothing is named that is not there."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from gspo_conformance.audit import audit_trace
from gspo_conformance.audit.factors import by_rough_factor
from gspo_conformance.audit.judgement import Audit
from gspo_conformance.cli import main
from gspo_conformance.noise.estimate import estimate

from .outsider import write


def _rules(found: Audit, severity: str = "error") -> list[str]:
    return [one.rule for one in found.findings if one.severity == severity]


def test_a_right_run_agrees(tmp_path: Path) -> None:
    found = audit_trace(write(tmp_path))
    assert found.verdict == "agrees"
    assert found.compared == 4 * 3 * 3 + 4 + 2


def test_a_clip_fraction_over_responses_is_another_definition_and_no_error(tmp_path: Path) -> None:
    found = audit_trace(write(tmp_path, "responses"))
    assert found.verdict == "agrees"
    assert "metrics.clip-by-response" in _rules(found, "warning")


@pytest.mark.parametrize(
    ("mistake", "rule", "words"),
    [
        ("eos", "mask.eos-dropped", ""),
        ("behind", "token-behind-counted", "token behind the last one"),
        ("truncated", "truncated-dropped", "reach the last column"),
        ("reference", "ratio.reference-as-old", "the reference policy in place of the old one"),
        ("kl", "added-term", "0.02 times k3 of the reference policy"),
        ("old kl", "added-term", "0.03 times k1 of the old policy, averaged over tokens"),
        ("weighted", "objective", "a correction for the sampler, of the level geometric"),
        ("tokens", "aggregation.token-mean", "of its step"),
        ("sums", "aggregation.token-sum", "mean over responses of their token sums"),
        ("means", "distribution.mean-of-means", "small one weigh more"),
        ("unit", "factor", "3 times what is claimed: the number of micro-batches"),
        ("reversed", "advantage.order", "on other responses"),
        ("clamped", "advantage.clamped", "clamped to ±0.9"),
        ("halved", "advantage.factor", "0.5 times what is claimed"),
        ("negated", "advantage.negated", "with the other sign"),
        ("small kl", "added-term", "0.0001 times k3 of the reference policy"),
        ("outside", "clip-two-sided-by-response", "whatever the sign"),
    ],
)
def test_a_mistake_is_named(mistake: str, rule: str, words: str, tmp_path: Path) -> None:
    """Hunts `low-precision` said of every difference that is small, whatever makes it."""
    found = audit_trace(write(tmp_path, mistake, advantages={"ddof": 1, "eps": 1e-6}))
    assert found.verdict == "differs"
    assert _rules(found)[0] == rule
    assert set(_rules(found)) <= {rule, "metric-differs"}
    told = next(one.message for one in found.findings if one.rule == rule)
    assert words in told
    assert "advantages differs" not in told


def test_small_losses_that_are_off_by_one_factor_are_said_to_be() -> None:
    """Hunts a KL term of a negative coefficient, which three losses of advantages whitened once more fit as well."""

    def right(one: Any, loss: float) -> bool:
        return abs(loss - one.part.loss) < 1e-6

    due = (1e-4, -2e-4, 2.5e-4)
    few: Any = [SimpleNamespace(expected=x, part=SimpleNamespace(loss=1.08 * x + 1e-7)) for x in due]
    assert ["1.08 times" in one.told for one in by_rough_factor(few, right)] == [True]
    assert not list(by_rough_factor(few[:2], right))
    few[0].part.loss = 2e-4
    assert not list(by_rough_factor(few, right))


def test_advantages_of_one_sign_are_no_accident(tmp_path: Path) -> None:
    """Hunts the mean length of no responses."""
    found = audit_trace(write(tmp_path, "uncentred", steps=12))
    assert found.verdict == "differs" or found.ledger.missing


def test_what_settings_do_beside_the_objective_is_said(tmp_path: Path) -> None:
    """Hunts a loss that nothing explains under settings of which the dialect knows the reason."""
    settings = {"importance_sampling_level": "sequence", "top_entropy_quantile": 0.5}
    trace = write(tmp_path, "eos", trainer={"name": "trl", "version": "1.16.0", "settings": settings})
    assert "settings/entropy-mask" in _rules(audit_trace(trace), "note")


@pytest.mark.parametrize("unit", ["probabilities", "costs"])
def test_what_is_no_log_probability_is_refused(unit: str, tmp_path: Path) -> None:
    """Hunts π, or the cross-entropy, recorded as log π: with s = 1 every number would agree."""
    found = audit_trace(write(tmp_path, unit, steps=1))
    assert found.verdict == "differs"
    assert _rules(found)[0] == "not-log-probabilities"
    assert "logp and old_logp are above 0 since step 0" in found.errors[0].message


@pytest.mark.parametrize(
    ("loss", "words"), [(None, "got None"), ("-0.25", "expected a number"), (float("nan"), "NaN is not JSON; write")]
)
def test_a_loss_that_is_none_is_refused_in_words(
    loss: object, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header = {"version": 1, "parts": [{"step": 0, "loss": loss}]}
    save_file({"0.mask": np.ones((1, 1), bool)}, tmp_path / "0.safetensors", {"gspo_trace": json.dumps(header)})
    assert main(["audit", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err


def test_the_rounding_of_float32_is_no_bias() -> None:
    lengths = np.full(24, 10)
    off = np.full(24, -2e-8) + 1e-9 * np.arange(24)
    found = estimate(lengths, off, off**2 * 4)
    assert found is not None
    assert not found.systematic
    far = estimate(lengths, off * 1e4, off**2 * 4e8)
    assert far is not None
    assert far.systematic
