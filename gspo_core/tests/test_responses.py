"""T_i and Σ_t d_{i,t} give the loss and the gradient that all the tokens give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gspo_core as gspo
from gspo_core.gradient import step_gradient
from gspo_core.loss import step_loss
from gspo_core.metrics import token_sums
from gspo_core.responses import Responses, needs_no_tokens, response_step
from gspo_core.step import prepare

from .batches import Batch, axes

AXES = axes()
MODES = ("sequence_mean_token_sum", "token_mean", "group_token_mean")
COVERED = sorted(name for name, objective in AXES.items() if needs_no_tokens(objective, np.ones(5), 5))

CASES = [(name, "sequence_mean_token_mean") for name in COVERED if "correction" not in name]
CASES += [(name, mode) for name in ("gspo_token", "product-Clip") for mode in MODES]


def test_the_surrogates_of_whole_responses_are_covered() -> None:
    assert {"gspo", "gspo_token", "luspo", "sequence-Sapo", "product-Clip", "sequence-Unclipped"} <= set(COVERED)
    assert not {"grpo", "gmpo", "vespo", "sequence-Cispo", "kl-k3-None", "decoupled"} & set(COVERED)
    assert not needs_no_tokens(gspo.Objective.gspo_token(), np.ones((5, 7)), 5)


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_responses_stand_for_their_tokens(xp: Any, name: str, mode: str) -> None:
    batch, objective = Batch(), AXES[name].replace(aggregation=gspo.Aggregation(mode, "non_empty", 3.0))
    arguments = batch.padded(xp)
    step = prepare(objective, **arguments)
    entries = response_step(
        objective,
        log_ratio=step.layout.sum_tokens(step.logp - step.old_logp),
        lengths=step.weights.lengths,
        advantages=arguments["advantages"],
        groups=arguments["groups"],
    )
    expected, found = step_loss(step), step_loss(entries, token_sums(step, step.logp))
    np.testing.assert_allclose(float(found.loss), float(expected.loss), rtol=1e-12)
    for metric, value in expected.metrics.items():
        np.testing.assert_allclose(float(found.metrics[metric]), float(value), rtol=1e-12, err_msg=metric)
    gradient = np.where(batch.mask, xp.numpy(step_gradient(entries))[:, None], 0)
    np.testing.assert_allclose(gradient, xp.numpy(step_gradient(step)), rtol=1e-12, atol=1e-18)


def test_a_total_weighs_each_response_by_its_tokens() -> None:
    layout = Responses(np.asarray([3.0, 0.0, 2.0]))
    values = np.asarray([0.5, np.nan, -1.0])
    assert layout.sum_tokens(values).tolist() == [1.5, 0.0, -2.0]
    assert layout.mean_tokens(values) is values
    assert float(layout.total(values)) == -0.5
    assert float(layout.count(values < 0.75, values.dtype)) == 5.0
    assert float(layout.count(values < 0.25, values.dtype)) == 2.0
    assert layout.spread(values) is values


def test_a_normalizer_replaces_the_count_of_responses() -> None:
    arguments = {
        "log_ratio": np.asarray([0.1, -0.2]),
        "lengths": np.asarray([2.0, 3.0]),
        "advantages": np.asarray([1.0, -1.0]),
    }
    for name in ("gspo", "gspo_token", "luspo"):
        one, four = (response_step(AXES[name], **arguments, normalizer=normalizer) for normalizer in (1, 4.0))
        np.testing.assert_allclose(step_loss(four).loss, step_loss(one).loss / 4)
        np.testing.assert_allclose(step_gradient(four), step_gradient(one) / 4)
        assert one.objective.ratio != "gspo_token"
