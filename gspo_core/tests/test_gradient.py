"""The closed form of the gradient: with any normaliser, with nothing to divide by, and found together with the loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gspo_core as gspo
from gspo_core.gradient import step_gradient
from gspo_core.loss import step_loss, step_solution
from gspo_core.metrics import TokenSums, step_metrics, token_sums
from gspo_core.step import prepare, unit_log_ratio
from gspo_core.surrogate import Clipped

from .batches import Batch, axes

AXES = axes()
AXES["dual"] = gspo.Objective("sequence", gspo.Clip(0.02, 0.01, 1.05))
AXES["dual-token"] = gspo.Objective("token", gspo.Clip(0.2, 0.3, 1.2), log_ratio_cap=0.5)
OBJECTIVES = [pytest.param(objective, id=name) for name, objective in AXES.items()]


def _arrays(values: Any, dtype: str | None = None) -> np.ndarray:
    return np.array(values, dtype=dtype)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_loss_and_gradient_found_together_are_those_found_apart(objective: gspo.Objective, layout: str) -> None:
    step = prepare(objective, **getattr(Batch(), layout)(_arrays, per_token=objective.allows_token_advantages))
    (loss, metrics), gradient = step_solution(step)
    alone = step_loss(step)
    np.testing.assert_allclose(loss, alone.loss, rtol=1e-13)
    np.testing.assert_allclose(gradient, step_gradient(step), rtol=1e-13)
    np.testing.assert_equal(metrics, alone.metrics)


@pytest.mark.parametrize("normalizer", [0.25, 1, 40.0, np.asarray(0.125)])
@pytest.mark.parametrize(
    "objective", [p for p in OBJECTIVES if p.id in ("gspo", "grpo", "dapo", "luspo", "dr_grpo", "vespo")]
)
def test_loss_and_gradient_are_divided_by_the_normalizer(objective: gspo.Objective, normalizer: Any) -> None:
    arguments = Batch().padded(_arrays)
    one = (
        gspo.policy_loss(objective, **arguments, normalizer=1.0),
        gspo.policy_gradient(objective, **arguments, normalizer=1.0),
    )
    loss, gradient = (
        function(objective, **arguments, normalizer=normalizer) for function in (gspo.policy_loss, gspo.policy_gradient)
    )
    np.testing.assert_allclose(float(loss.loss), float(one[0].loss) / float(normalizer), rtol=1e-13)
    np.testing.assert_allclose(gradient, one[1] / float(normalizer), rtol=1e-13)
    assert {name: float(value) for name, value in loss.metrics.items()} == {
        name: float(value) for name, value in one[0].metrics.items()
    }


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_in_which_nothing_counts_has_no_gradient(objective: gspo.Objective) -> None:
    """Not NaN, not a warning: 0 throughout, for every axis and every way to count."""
    for count in ("all", "non_empty"):
        aggregation = gspo.Aggregation(objective.aggregation.mode, count)
        quiet = objective.replace(aggregation=aggregation)
        arguments = Batch().padded(_arrays)
        arguments["sequences"] = gspo.Padded(np.zeros_like(arguments["sequences"].mask))
        assert not gspo.policy_gradient(quiet, **arguments).any()
        assert float(gspo.policy_loss(quiet, **arguments).loss) == 0.0


def test_a_penalty_with_an_aggregation_of_its_own_is_divided_by_its_own_count() -> None:
    """`normalizer` replaces the M of the surrogate, never that of a penalty which counts for itself."""
    own = gspo.Penalty("k2", 0.5, aggregation=gspo.Aggregation("token_mean"))
    objective = gspo.Objective.gspo().replace(penalty=own)
    arguments = Batch().padded(_arrays)
    silent = arguments | {"advantages": np.zeros(5)}
    z = (arguments["logp"] - arguments["ref_logp"])[arguments["sequences"].mask]
    for normalizer in (None, 7.0):
        out = gspo.policy_loss(objective, **silent, normalizer=normalizer)
        np.testing.assert_allclose(float(out.loss), 0.5 * (z**2 / 2).mean(), rtol=1e-13)
        np.testing.assert_allclose(float(out.metrics["kl_penalty"]), (z**2 / 2).mean(), rtol=1e-13)
        slopes = gspo.policy_gradient(objective, **silent, normalizer=normalizer)
        np.testing.assert_allclose(slopes[arguments["sequences"].mask], 0.5 * z / z.size, rtol=1e-13)
    with pytest.raises(
        ValueError,
        match=r"^objective: expected one aggregation for loss and penalty, got Aggregation\(mode='token_mean'",
    ):
        gspo.policy_loss_sum(objective, **arguments)
    given = gspo.Objective.gspo().replace(aggregation=gspo.Aggregation(count="given"))
    with pytest.raises(ValueError, match=r"^objective: expected an aggregation that counts 'all' or 'non_empty', got"):
        gspo.policy_loss_sum(given, **arguments)
    same = objective.replace(penalty=gspo.Penalty("k2", 0.5, aggregation=objective.aggregation))
    parts = gspo.policy_loss_sum(same, **arguments)
    np.testing.assert_allclose(
        float(parts.sum / parts.count), float(gspo.policy_loss(same, **arguments).loss), rtol=1e-13
    )


@pytest.mark.parametrize("action", ["mask", "reject", "clamp"])
@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_the_interval_of_a_correction_is_closed(level: str, action: str) -> None:
    """A weight of exactly 1 passes [1, 2] and [0, 1], and neither [1.5, 2] nor [0, 0.5]."""
    arguments = {name: np.full((1, 2), -1.0) for name in ("logp", "old_logp", "behavior_logp")}
    arguments |= {"advantages": np.ones(1), "sequences": np.ones((1, 2), bool)}
    for low, high, kept in (
        (1.0, 2.0, 1.0),
        (0.0, 1.0, 1.0),
        (1.0, 1.0, 1.0),
        (1.5, 2.0, 1.5),
        (0.0, 0.5, 0.5),
        (None, 0.5, 0.5),
        (1.5, None, 1.5),
    ):
        objective = gspo.Objective("sequence", gspo.Unclipped(), correction=gspo.Correction(level, action, low, high))
        expected = kept if action == "clamp" or kept == 1 else 0.0
        assert -float(gspo.policy_loss(objective, **arguments).loss) == expected, (low, high)


@pytest.mark.parametrize("objective", [p for p in OBJECTIVES if p.values[0].aggregation.mode != "token_sum"])
def test_parts_carry_the_metrics_of_their_loss(objective: gspo.Objective) -> None:
    arguments = Batch().padded(_arrays)
    whole, parts = gspo.policy_loss(objective, **arguments), gspo.policy_loss_sum(objective, **arguments)
    for name, value in whole.metrics.items():
        np.testing.assert_allclose(float(parts.metrics[name]), float(value), rtol=1e-13, err_msg=name)


@pytest.mark.parametrize("name", ["gspo", "grpo", "cispo", "gmpo", "kl-k3-None", "kl-k1-token-free", "dual"])
def test_sums_over_tokens_that_are_elsewhere_are_taken_as_they_are_given(name: str) -> None:
    """Whoever holds the tokens says what Σ (e^d - 1 - d) and the number of moved tokens are."""
    step = prepare(AXES[name], **Batch().padded(_arrays))
    mine, tokens = step_loss(step), token_sums(step, step.logp)
    for given in (TokenSums(tokens.divergence * 3, tokens.moved), TokenSums(tokens.divergence, tokens.moved * 0)):
        for found in (step_loss(step, given), step_solution(step, given)[0]):
            ratio = float(given.divergence / tokens.divergence)
            np.testing.assert_allclose(
                float(found.metrics["approx_kl"]), ratio * float(mine.metrics["approx_kl"]), rtol=1e-13
            )
            assert float(found.metrics["ratio_is_one"]) == float(given.moved == 0)
            assert float(found.loss) == float(mine.loss)


def test_clipped_units_that_are_known_are_not_looked_for_again() -> None:
    step = prepare(AXES["gspo"], **Batch().padded(_arrays))
    none, every = np.zeros(5, bool), np.ones(5, bool)
    found = step_metrics(step, unit_log_ratio(step), None, None, Clipped(none, every, none))
    assert (float(found["clip_fraction_high"]), float(found["clip_fraction"])) == (1.0, 1.0)


def test_the_wider_of_two_policies_computes() -> None:
    arguments = Batch().padded(_arrays, "float32")
    for wide in ("logp", "old_logp", "ref_logp", "advantages", ""):
        given = {**arguments, **({wide: arguments[wide].astype("float64")} if wide else {})}
        penalty = gspo.Penalty(aggregation=gspo.Aggregation("token_mean"))
        objective = gspo.Objective.grpo().replace(penalty=penalty)
        expected = "float64" if wide in ("logp", "old_logp") else "float32"
        assert gspo.policy_loss(objective, **given).loss.dtype == expected, wide
        assert gspo.policy_gradient(objective, **given).dtype == expected, wide


def test_a_penalty_per_group_counts_the_groups_of_the_step() -> None:
    penalty = gspo.Penalty("k1", 1.0, aggregation=gspo.Aggregation("group_token_mean"))
    arguments = Batch().padded(_arrays) | {"advantages": np.zeros(5)}
    mask, groups = arguments["sequences"].mask, arguments["groups"]
    z = np.where(mask, arguments["logp"] - arguments["ref_logp"], 0)
    means = [z[groups == group].sum() / mask[groups == group].sum() for group in np.unique(groups)]
    found = gspo.policy_loss(gspo.Objective.gspo().replace(penalty=penalty), **arguments)
    np.testing.assert_allclose(float(found.loss), np.mean(means), rtol=1e-13)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "gspo",
            (5, 7),
            r"shape \(5,\) .*, since sequence ratio and Clip have one value per response \(GSPO .*\.gspo_token\), got \(5, 7\)",
        ),
        (
            "gmpo",
            (5, 7),
            r"shape \(5,\) \(one per sequence\), since token ratio and Gmpo have one value per response, got \(5, 7\)",
        ),
        ("grpo", (5, 6), r"shape \(5,\) \(one per sequence\) or \(5, 7\) \(per token\), got \(5, 6\)"),
        ("grpo", (7,), r"shape \(5,\) \(one per sequence\) or \(5, 7\) \(per token\), got \(7,\)"),
    ],
)
def test_advantages_of_another_shape(name: str, shape: tuple[int, ...], message: str) -> None:
    arguments = Batch().padded(_arrays) | {"advantages": np.ones(shape)}
    with pytest.raises(ValueError, match=f"^advantages: expected {message}$"):
        gspo.policy_loss(AXES[name], **arguments)


def test_what_an_objective_does_not_read_may_be_missing() -> None:
    arguments = Batch().padded(_arrays)
    for name, missing, why in (("kl-k3-None", "ref_logp", "penalty"), ("decoupled", "behavior_logp", "correction")):
        without = {key: value for key, value in arguments.items() if key != missing}
        gspo.policy_loss(AXES["gspo"], **without)
        with pytest.raises(
            ValueError, match=f"^{missing}: expected an array, since the objective has a {why}, got None$"
        ):
            gspo.policy_loss(AXES[name], **without)


@pytest.mark.parametrize("ratio", ["token", "sequence", "gspo_token", "product"])
def test_at_the_cap_of_a_log_ratio_the_gradient_passes_and_beyond_it_does_not(ratio: str) -> None:
    import torch

    for log_ratio, passes in ((0.5, True), (0.5 + 2**-40, False), (0.25, True)):
        objective = gspo.Objective(ratio, gspo.Unclipped(), log_ratio_cap=0.5)
        arguments = {"old_logp": np.zeros((1, 1)), "advantages": np.ones(1), "sequences": np.ones((1, 1), bool)}
        slopes = gspo.policy_gradient(objective, logp=np.full((1, 1), log_ratio), **arguments)
        expected = -np.exp(min(log_ratio, 0.5)) * passes
        np.testing.assert_allclose(slopes, [[expected]], rtol=1e-14)
        logp = torch.full((1, 1), log_ratio, dtype=torch.float64, requires_grad=True)
        gspo.policy_loss(
            objective, logp=logp, **{name: torch.asarray(one) for name, one in arguments.items()}
        ).loss.backward()
        assert logp.grad is not None
        np.testing.assert_allclose(logp.grad.numpy(), [[expected]], rtol=1e-14)


def test_an_advantage_per_token_must_be_finite_where_its_token_counts() -> None:
    arguments = Batch().padded(_arrays, per_token=True)
    arguments["advantages"][0, 0] = np.nan
    with pytest.raises(
        ValueError, match=r"^advantages: expected finite numbers at counted positions, got 1 NaN or inf, the first at"
    ):
        gspo.policy_loss(AXES["grpo"], **arguments)


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_a_weight_that_overflows_changes_nothing_where_the_advantage_is_0(level: str, ratio: str) -> None:
    """0 · w is 0 (GSPO-SURR-12), and so is a weight that another correction has set to 0."""
    objective = gspo.Objective(ratio, gspo.Clip(0.2, 0.2), correction=gspo.Correction(level))
    tokens = {"logp": np.asarray([[-1.0, -2.0]] * 2), "old_logp": np.asarray([[-1.0, -2.0]] * 2)}
    tokens["behavior_logp"] = np.asarray([[-900.0, -900.0], [-1.0, -2.0]])
    for objective_, advantages in (
        (objective, [0.0, 1.0]),
        (objective.replace(correction=(gspo.Correction(level), gspo.Correction(level, "mask", high=2.0))), [1.0, 1.0]),
    ):
        rest = {"advantages": np.asarray(advantages), "sequences": np.ones((2, 2), bool), **tokens}
        with np.errstate(over="ignore", invalid="ignore"):
            out, gradient = gspo.policy_loss(objective_, **rest), gspo.policy_gradient(objective_, **rest)
        np.testing.assert_allclose(out.loss, -0.5)
        np.testing.assert_allclose(gradient, [[0.0, 0.0], [-0.25, -0.25]])


def test_a_clipped_token_of_a_response_that_overflows_has_no_gradient() -> None:
    """GMPO: 0 · ∞ is 0 at the token that is held at its bound (GSPO-GRAD-2)."""
    arguments = {"logp": np.asarray([[2000.0, 2000.0, -2.0, 2000.0]]), "old_logp": np.full((1, 4), -1.0)}
    arguments |= {"advantages": -np.ones(1), "sequences": np.ones((1, 4), bool)}
    with np.errstate(over="ignore"):
        gradient = gspo.policy_gradient(gspo.Objective.gmpo(), **arguments)
    assert gradient.tolist() == [[np.inf, np.inf, 0.0, np.inf]]


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize(
    "objective",
    [
        gspo.Objective.grpo(),
        gspo.Objective.gspo(),
        gspo.Objective("token", gspo.Unclipped(), log_ratio_cap=0.1),
        gspo.Objective("sequence", gspo.Sapo(), log_ratio_cap=0.1),
    ],
)
def test_a_unit_whose_gate_is_closed_has_no_gradient_whatever_its_weight(objective: gspo.Objective, kind: str) -> None:
    """0 · ∞ is 0 where a correction's weight overflows (GSPO-GRAD-2, GSPO-RATIO-6), by hand and by autograd alike."""
    import torch

    convert = np.asarray if kind == "numpy" else torch.asarray
    objective = objective.replace(correction=gspo.Correction("sequence"))
    values = {"logp": [[-1.0, -1.0], [-1.0, -1.0]], "old_logp": [[-1.4, -1.5], [-1.0, -1.0]]}
    values |= {
        "behavior_logp": [[-900.0, -900.0], [-1.0, -1.0]],
        "advantages": [1.0, 1.0],
        "sequences": [[1, 1], [1, 1]],
    }
    arguments = {name: convert(rows) for name, rows in values.items()}
    with np.errstate(over="ignore"):
        found = [gspo.policy_gradient(objective, **arguments)]
    if kind == "torch":
        logp = arguments["logp"].requires_grad_()
        found += torch.autograd.grad(gspo.policy_loss(objective, **arguments).loss, logp)
    for gradient in found:
        np.testing.assert_allclose(gradient, [[0.0, 0.0], [-0.25, -0.25]])


@pytest.mark.parametrize("importance", [None, "token", "sequence"])
def test_a_penalty_of_coefficient_zero_adds_nothing_even_where_it_overflows(importance: str | None) -> None:
    objective = gspo.Objective.grpo().replace(penalty=gspo.Penalty("k3", 0.0, importance))
    arguments = {"logp": np.full((1, 2), -1000.0), "old_logp": np.full((1, 2), -2000.0), "ref_logp": np.zeros((1, 2))}
    arguments |= {"advantages": np.ones(1), "sequences": np.ones((1, 2), bool)}
    with np.errstate(over="ignore"):
        out, gradient = gspo.policy_loss(objective, **arguments), gspo.policy_gradient(objective, **arguments)
        parts = gspo.policy_loss_sum(objective, **arguments)
    assert out.metrics["kl_penalty"] == np.inf
    assert [out.loss, parts.sum] == [-1.27, -1.27]
    assert gradient.tolist() == [[0.0, 0.0]]


def test_only_the_current_policy_has_a_gradient() -> None:
    """GSPO-DATA-6, where everything else tracks gradients too."""
    import torch

    objective = gspo.Objective.dapo().replace(
        penalty=gspo.Penalty("k3", 0.1, importance="token"), correction=gspo.Correction(numerator="current")
    )
    logp, *others = (torch.full((2, 3), value, requires_grad=True) for value in (-1.0, -1.1, -1.2, -0.9))
    advantages, normalizer = torch.tensor([1.0, -1.0], requires_grad=True), torch.tensor(2.0, requires_grad=True)
    step = dict(zip(("old_logp", "ref_logp", "behavior_logp"), others, strict=True))
    step |= {"advantages": advantages, "normalizer": normalizer, "sequences": torch.ones(2, 3)}
    gspo.policy_loss(objective, logp=logp, **step).loss.backward()
    assert [one.grad for one in (*others, advantages, normalizer)] == [None] * 5
    assert logp.grad is not None
