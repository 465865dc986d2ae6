"""What trainers other than TRL and verl do: right runs of them agree, and mistakes around them are named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gspo_core as gspo
from gspo_conformance.audit import audit_trace
from gspo_conformance.tensors import NumPyArray

from .test_right_runs import Calls, batch, compute, gradient_of, write

Arrays = dict[str, NumPyArray]
GSPO = gspo.Objective.gspo(gspo.Clip(3e-3, 4e-3))
BY_TOKEN = gspo.Aggregation("token_mean")
PENALTY = GSPO.replace(penalty=gspo.Penalty("k3", coefficient=0.05, aggregation=BY_TOKEN))


def _steps(loss: Callable[[Arrays, int, int], float], **options: Any) -> Iterator[Calls]:
    """Three steps of three micro-batches; `loss` is given a micro-batch and the responses and tokens of its step."""
    for step in range(3):
        ones = [batch(number, 10 * step + at, **options) for at, number in enumerate((2, 5, 4))]
        tokens = sum(int(one["mask"].sum()) for one in ones)
        yield [(one, {"loss": loss(one, 11, tokens), "normalizer": 11.0}) for one in ones]


def _kl(one: Arrays, estimator: str) -> float:
    """Σ_t of a KL estimator."""
    z = np.where(one["mask"], one["ref_logp"].astype(np.float64) - one["logp"], 0.0)
    return float({"k3": np.exp(z) - z - 1, "k1": -z}[estimator].sum())


def _penalised(estimator: str, coefficient: float) -> Callable[[Arrays, int, int], float]:
    """A mean over the responses of the step and a KL term that is a mean over its tokens, as OpenRLHF adds them."""

    def loss(one: Arrays, responses: int, tokens: int) -> float:
        policy = compute(GSPO, one, normalizer=np.float32(responses))[0]
        return policy + coefficient * _kl(one, estimator) / tokens

    return loss


def test_a_kl_term_with_an_m_of_its_own_is_divided_by_that_of_the_step(tmp_path: Path) -> None:
    """Hunts a KL term that is divided by the tokens of its micro-batch where the loss is a share of the step's."""
    found = audit_trace(write(tmp_path, list(_steps(_penalised("k3", 0.05))), objective=PENALTY.to_dict()))
    assert found.verdict == "agrees"
    assert found.compared == 9 + 3


@pytest.mark.parametrize(
    ("claimed", "estimator", "coefficient", "rule", "words"),
    [
        (PENALTY, "k3", 0.2, "penalty", "Its KL term is 0.2 times the estimator, where 0.05 is claimed"),
        (PENALTY, "k1", 0.05, "penalty", "Its KL term is 0.05 times k1, another estimator, where 0.05 is claimed"),
        (GSPO, "k3", 0.05, "added-term", "0.05 times k3 of the reference policy, averaged over tokens"),
    ],
)
def test_another_kl_term_over_the_tokens_of_the_step_is_found(
    claimed: gspo.Objective, estimator: str, coefficient: float, rule: str, words: str, tmp_path: Path
) -> None:
    steps = list(_steps(_penalised(estimator, coefficient), moved=0.1))
    found = audit_trace(write(tmp_path, steps, objective=claimed.to_dict()))
    assert [one.rule for one in found.errors] == [rule]
    assert words in found.errors[0].message


def _by_token(one: Arrays) -> Arrays:
    """With the advantage of a response at each of its tokens, and 0 elsewhere."""
    return one | {"advantages": one["advantages"][:, None] * one["mask"].astype(np.float32)}


def _padding_counted(one: Arrays, responses: int, tokens: int) -> float:
    """Everything from the first token of a response on counts in a mean to which padding adds advantages of 0."""
    wide = np.maximum.accumulate(one["mask"], axis=1)
    share = (one["mask"].sum(1) / wide.sum(1)).astype(np.float32)
    return compute(
        GSPO, one | {"mask": wide, "advantages": one["advantages"] * share}, normalizer=np.float32(responses)
    )[0]


def test_padding_that_counts_is_found_where_advantages_are_of_tokens(tmp_path: Path) -> None:
    """Hunts advantages of tokens that are taken for those of other tokens once the mask is another one."""
    steps = [[(_by_token(one), fields) for one, fields in calls] for calls in _steps(_padding_counted)]
    found = audit_trace(write(tmp_path, steps, objective=GSPO.to_dict()))
    assert [one.rule for one in found.errors] == ["padding-counted"]


def test_advantages_of_another_batch_are_recognised_where_they_are_of_tokens(tmp_path: Path) -> None:
    ones = [batch(6, step) for step in range(4)]
    steps: list[Calls] = []
    for one, before in zip(ones, [ones[0], *ones], strict=False):
        loss, _ = compute(GSPO, one | {"advantages": before["advantages"]})
        steps.append([(_by_token(one), {"loss": loss})])
    found = audit_trace(write(tmp_path, steps, objective=GSPO.to_dict()))
    assert [one.rule for one in found.errors] == ["advantage.batch"]


def _rollouts(made: Callable[[NumPyArray, NumPyArray], NumPyArray]) -> list[Calls]:
    """Rewards, groups of four and what is `made` of them, in steps of one micro-batch."""
    steps: list[Calls] = []
    for step in range(3):
        one = batch(12, step) | {"groups": np.repeat([0, 1, 2], 4) + 10 * step}
        one["rewards"] = np.random.default_rng(step).normal(size=12).round(2).astype(np.float32)
        one["advantages"] = np.asarray(made(one["rewards"].astype(np.float64), one["groups"]), np.float32)
        given = {name: values for name, values in one.items() if name not in ("rewards", "groups")}
        steps.append([(one, {"loss": compute(GSPO, given)[0], "rollout": step})])
    return steps


def _folder(path: Path, name: str) -> Path:
    (path / name).mkdir()
    return path / name


def _standardised(rewards: NumPyArray, groups: NumPyArray, **settings: Any) -> NumPyArray:
    return np.asarray(gspo.group_advantages(rewards, groups, **settings))


def _over_all(values: NumPyArray) -> NumPyArray:
    return (values - 0.1) / 0.8


ROLL = {"adv_estimator": "grpo", "importance_sampling": "seq", "loss_agg_mode": "seq-mean-token-mean"}
ROLL |= {"use_pg_clip_range": True, "pg_clip_low": 3e-3, "pg_clip_high": 4e-3}
AREAL = {"actor.importance_sampling_level": "sequence", "actor.eps_clip": 3e-3, "actor.eps_clip_higher": 4e-3}
AREAL |= {"actor.kl_ctl": 0.0, "actor.reward_norm.mean_level": "group", "actor.reward_norm.group_size": 4}


@pytest.mark.parametrize(
    ("more", "made"),
    [
        ({"advantage_clip": 0.8}, lambda r, g: np.clip(_standardised(r, g), -0.8, 0.8)),
        ({"reward_clip": 1.0}, lambda r, g: np.clip(_standardised(r, g), -1, 1)),
        ({"whiten_advantages": True}, lambda r, g: _over_all(_standardised(r, g))),
        (
            {"whiten_advantages": True, "advantage_clip": 0.8},
            lambda r, g: np.clip(_over_all(_standardised(r, g)), -0.8, 0.8),
        ),
        ({"add_token_level_kl": True}, lambda r, g: _standardised(r, g) - 0.01 * np.arange(12)),
    ],
)
def test_what_settings_do_to_advantages_besides_is_not_held_against_them(
    more: dict[str, Any], made: Callable[[NumPyArray, NumPyArray], NumPyArray], tmp_path: Path
) -> None:
    """Hunts an error on advantages that are bounded, whitened or lessened by a KL term as the settings say."""
    steps, trainer = _rollouts(made), {"name": "roll", "version": "8eb27cc2", "settings": ROLL | more}
    found = audit_trace(write(_folder(tmp_path, "claimed"), steps, trainer=trainer, group_size=4))
    assert found.verdict == "agrees"
    other = {"name": "roll", "version": "8eb27cc2", "settings": ROLL}
    assert audit_trace(write(_folder(tmp_path, "plain"), steps, trainer=other, group_size=4)).verdict == "differs"


def test_claimed_whitening_is_no_excuse_for_the_advantages_of_others(tmp_path: Path) -> None:
    steps = _rollouts(lambda r, g: np.roll(_over_all(_standardised(r, g)), 1))
    trainer = {"name": "roll", "version": "8eb27cc2", "settings": ROLL | {"whiten_advantages": True}}
    assert audit_trace(write(tmp_path, steps, trainer=trainer, group_size=4)).verdict == "differs"


def test_rewards_that_are_scaled_have_less_of_eps(tmp_path: Path) -> None:
    """Hunts AReaL's eps, which is added to the standard deviation of rewards that are already scaled."""
    norm = {"actor.reward_norm.std_level": "group", "actor.reward_norm.eps": 0.01, "actor.reward_scaling": 10.0}
    steps = _rollouts(lambda r, g: _standardised(10 * r, g, eps=0.01))
    for calls in steps:
        one, fields = calls[0]
        given = {name: values for name, values in one.items() if name not in ("rewards", "groups")}
        fields["loss"] = compute(GSPO.replace(aggregation=BY_TOKEN), given)[0]
    trainer = {"name": "areal", "version": "1.0.4", "settings": AREAL | norm}
    assert audit_trace(write(tmp_path, steps, trainer=trainer, group_size=4)).verdict == "agrees"


@pytest.mark.parametrize(
    ("made", "rule", "words"),
    [
        (lambda r, g: _standardised(r, g, eps=0.03), "advantage.eps", "eps 0.03 where 1e-06 is claimed"),
        (lambda r, _: _standardised(r, np.arange(12) // 6), "advantage.order", "in groups of 6 responses in a row"),
        (lambda r, g: _over_all(_standardised(r, g)), "advantage.whitened", "the right advantages, normalised over"),
        (
            lambda r, g: _over_all(_standardised(r, g, scale="none")),
            "advantage.whitened",
            "r minus the mean of its group, normalised over the batch: 1.25 times that less 0.125",
        ),
    ],
)
def test_other_advantages_are_named(
    made: Callable[[NumPyArray, NumPyArray], NumPyArray], rule: str, words: str, tmp_path: Path
) -> None:
    claimed = {"objective": GSPO.to_dict(), "group_size": 4, "advantages": {"ddof": 1, "eps": 1e-6}}
    found = audit_trace(write(tmp_path, _rollouts(made), **claimed))
    assert [one.rule for one in found.errors] == [rule]
    assert words in found.errors[0].message


def _trained_on(other: Callable[[list[Arrays]], list[NumPyArray]]) -> Iterator[Calls]:
    """Two steps of two micro-batches of one rollout, with the loss and the gradient of other advantages, which a loop multiplies by 3."""
    for step in range(2):
        ones = [batch(5, 10 * step + at, moved=1e-4) for at in range(2)]
        calls: Calls = []
        for one, advantages in zip(ones, other(ones), strict=True):
            used = one | {"advantages": advantages.astype(np.float32)}
            fields = {"loss": compute(GSPO, used, normalizer=np.float32(10))[0], "normalizer": 10.0, "rollout": 0}
            gradient = 3 * gradient_of(GSPO, used, normalizer=np.float32(10))
            calls.append((one | {"gradient": gradient}, fields))
        yield calls


def _shuffled(ones: list[Arrays]) -> list[NumPyArray]:
    order = np.random.default_rng(len(ones)).permutation(10)
    return np.split(np.concatenate([one["advantages"] for one in ones])[order], 2)


@pytest.mark.parametrize(
    ("other", "rule", "words"),
    [
        (_shuffled, "advantage.order", "advantages that other responses of the rollout have"),
        (
            lambda ones: [one["advantages"] * (1.5 - one["mask"].sum(1) / 10) for one in ones],
            "response-weights",
            "each has a weight of its own, the smaller the longer it is",
        ),
        (
            lambda ones: [one["advantages"] * (np.arange(5) % 2) for one in ones],
            "dropped-response",
            "without 12 responses of 20",
        ),
        (
            lambda ones: [np.cos(np.arange(5) + one["advantages"]) for one in ones],
            "advantage.unrecorded",
            "other advantages than the recorded ones",
        ),
    ],
)
def test_gradients_tell_whose_advantages_they_have(
    other: Callable[[list[Arrays]], list[NumPyArray]], rule: str, words: str, tmp_path: Path
) -> None:
    """Hunts a loss that differs for no known reason, where each response's gradient says what its advantage was."""
    found = audit_trace(write(tmp_path, list(_trained_on(other)), objective=GSPO.to_dict()))
    assert [one.rule for one in found.errors] == [rule]
    assert words in found.errors[0].message


def _loss(objective: gspo.Objective, one: Arrays) -> float:
    """Divided by 10, with the weights of the sampler where the objective has them."""
    given = {name: one[name] for name in ("logp", "old_logp", "advantages")}
    given |= {"behavior_logp": one["behavior_logp"]} if objective.correction else {}
    return float(gspo.policy_loss(objective, **given, sequences=one["mask"], normalizer=np.float32(10)).loss)


def _of(claimed: gspo.Objective, used: gspo.Objective, tmp_path: Path) -> tuple[str, str]:
    """The one error of a run that claims one objective and has another."""
    steps: list[Calls] = []
    for step in range(3):
        ones = [batch(5, 10 * step + at) for at in range(2)]
        for at, one in enumerate(ones):
            moved = 0.05 * np.random.default_rng(100 + 10 * step + at).normal(size=one["logp"].shape)
            one["behavior_logp"] = (one["old_logp"] + moved).astype(np.float32)
        steps.append([(one, {"loss": _loss(used, one), "normalizer": 10.0}) for one in ones])
    (error,) = audit_trace(write(tmp_path, steps, objective=claimed.to_dict())).errors
    return error.rule, error.message


WIDE = GSPO.replace(surrogate=gspo.Clip(0.2, 0.28))
PPO = WIDE.replace(ratio="token", aggregation=BY_TOKEN)


def _weighted(level: str, low: float | None, high: float | None) -> gspo.Objective:
    return GSPO.replace(correction=(gspo.Correction(level, low=low, high=high),))


@pytest.mark.parametrize(
    ("claimed", "used", "words"),
    [
        (WIDE, GSPO, "with the range ε_low = 0.003, ε_high = 0.004 where 0.2 and 0.28 are claimed"),
        (PPO, GSPO, "with the sequence ratio, the aggregation sequence_mean_token_mean and the range ε_low = 0.003"),
        (_weighted("token", 0.5, 2), _weighted("token", 0.97, 1.04), "its correction held between 0.97 and 1.04"),
        (GSPO, _weighted("token", None, 1.04), "of the level token, bounded above by 1.04"),
        (_weighted("token", None, 1.5), _weighted("sequence", None, 1.5), "weights of the level sequence where token"),
        (PPO, gspo.Objective.luspo(), "luspo(): the sequence ratio, the surrogate Clip(low="),
    ],
)
def test_two_numbers_are_found_together(
    claimed: gspo.Objective, used: gspo.Objective, words: str, tmp_path: Path
) -> None:
    """Hunts a run whose both widths, or both bounds of weights, are others than those of the claim."""
    rule, message = _of(claimed, used, tmp_path)
    assert rule == "objective"
    assert words in message


def test_a_loss_that_is_not_differentiated_is_told(tmp_path: Path) -> None:
    """Hunts "the ratio detached" said of a loop that differentiates the last micro-batch alone."""
    steps = list(_trained_on(lambda ones: [one["advantages"] for one in ones]))
    for calls in steps:
        calls[0][0]["gradient"] *= 0
    (error,) = audit_trace(write(tmp_path, steps, objective=GSPO.to_dict())).errors
    assert error.rule == "no-gradient"
    assert "no gradient arrives but from micro-batch 1 of a step" in error.message.lower()


def _untruncated(one: Arrays, responses: int, tokens: int) -> float:
    """Without responses that reach the last column."""
    kept = {name: values[~one["mask"][:, -1]] for name, values in one.items()}
    return compute(GSPO, kept, normalizer=np.float32(responses))[0]


@pytest.mark.parametrize(("masked", "verdict"), [(True, "agrees"), (False, "differs")])
def test_what_settings_announce_is_no_error(masked: bool, verdict: str, tmp_path: Path) -> None:
    steps = list(_steps(_untruncated))
    assert any(one["mask"][:, -1].any() for calls in steps for one, _ in calls)
    trainer = {"name": "roll", "version": "8eb27cc2", "settings": ROLL | {"max_len_mask": masked}}
    found = audit_trace(write(tmp_path, steps, trainer=trainer))
    assert found.verdict == verdict
    assert [one.severity for one in found.findings if one.rule == "truncated-dropped"] == [
        "warning" if masked else "error"
    ]
