"""Faults of a training loop whose explanation must hold for all that the run recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gspo_core as gspo
from gspo_conformance.audit import audit_trace
from gspo_conformance.audit.shards import Broken, read_shard
from gspo_conformance.tensors import NumPyArray

from .test_right_runs import Calls, batch, compute, gradient_of, write

GSPO = gspo.Objective.gspo()


def _call(seed: int, *, moved: float = 0.01, **fields: Any) -> tuple[dict[str, NumPyArray], dict[str, Any]]:
    """Arrays of a right micro-batch of six responses, its gradient included, and its loss."""
    arrays = batch(6, seed, moved=moved)
    arrays["gradient"] = gradient_of(GSPO, arrays)
    return arrays, {"loss": compute(GSPO, arrays)[0], **fields}


def _found(folder: Path, calls: Calls, **run: Any) -> list[tuple[str, str]]:
    trace = write(folder, [[one] for one in calls], **{"objective": "gspo", **run})
    return [(one.rule, one.message) for one in audit_trace(trace).errors]


def test_a_gradient_that_is_nothing_is_no_multiple_of_one(tmp_path: Path) -> None:
    """Hunts `agrees` of a micro-batch that was detached: 0 times the gradient that is due."""
    calls = [_call(step) for step in range(3)]
    calls[1][0]["gradient"] *= 0
    ((rule, message),) = _found(tmp_path, calls)
    assert rule == "gradient.detached"
    assert "at worst 0 where" in message


def test_a_loss_near_that_of_another_objective_is_not_taken_for_it_where_the_claim_cancels(tmp_path: Path) -> None:
    """Hunts "the loss with cispo()" of one that is off by a thousandth: the claim's is 0 but for rounding, as of normalised advantages."""
    calls = []
    for step in range(4):
        arrays, fields = _call(step, moved=1e-3)
        del arrays["gradient"]
        arrays["advantages"] -= arrays["advantages"].mean()
        ratio = np.exp((arrays["logp"] - arrays["old_logp"])[arrays["mask"].astype(bool)].mean(dtype=float))
        weighed = arrays["logp"].astype(float) * arrays["advantages"][:, None] * arrays["mask"]
        calls.append((arrays, fields | {"loss": -float(ratio * weighed.sum() / arrays["mask"].sum())}))
    ((rule, message),) = _found(tmp_path, calls)
    assert rule == "loss-differs"
    assert "cispo" not in message


def test_what_gives_the_gradient_and_another_loss_is_no_explanation(tmp_path: Path) -> None:
    """Hunts `old log-probabilities of the truncated sampler` of a loop that detaches bad responses: their losses are right."""
    calls = [_call(step, moved=1e-5) for step in range(3)]
    for arrays, _ in calls:
        arrays["gradient"][arrays["advantages"] < 0] = 0
    ((rule, _),) = _found(tmp_path, calls)
    assert rule == "gradient-differs"


def test_micro_batches_without_a_loss_are_called_that(tmp_path: Path) -> None:
    """Hunts `ratio.of-batch` of losses that are 0."""
    calls = [_call(step) for step in range(4)]
    for arrays, fields in calls[::2]:
        arrays["advantages"] -= arrays["advantages"].mean()
        fields["loss"] = 0.0
        arrays["gradient"] *= 0
    assert [rule for rule, _ in _found(tmp_path, calls)] == ["no-loss"]


def test_a_ratio_to_the_sampler_is_named(tmp_path: Path) -> None:
    calls: Calls = []
    for step in range(3):
        arrays = batch(6, step)
        noise = np.random.default_rng(step).normal(size=arrays["logp"].shape)
        sampled = (arrays["old_logp"] + 0.02 * noise).astype(np.float32)
        loss, _ = compute(GSPO, arrays | {"old_logp": sampled})
        calls.append((arrays | {"behavior_logp": sampled}, {"loss": loss}))
    found = dict(_found(tmp_path, calls))
    assert "behavior_logp in place of old_logp" in found["sampler-as-old"]


@pytest.mark.parametrize("preset", ["vespo", "gspo"])
def test_weights_of_the_sampler_inside_the_ratio_are_named_with_their_bound(preset: str, tmp_path: Path) -> None:
    """Hunts `the loss differs` and nothing else of a trainer whose kernel sees π_old / μ too, held at 3."""
    calls: Calls = []
    for step in range(3):
        arrays = batch(6, step)
        noise = np.random.default_rng(step).normal(size=arrays["logp"].shape)
        arrays["behavior_logp"] = (arrays["old_logp"] - 0.1 - np.abs(noise)).astype(np.float32)
        held = np.minimum(arrays["old_logp"] - arrays["behavior_logp"], np.log(np.float32(3)))
        loss, _ = compute(getattr(gspo.Objective, preset)(), arrays | {"old_logp": arrays["old_logp"] - held})
        calls.append((arrays, {"loss": loss}))
    found = dict(_found(tmp_path, calls, objective=preset))
    assert "has the weights of the sampler in it, π_old / μ of a token held at 3" in found["sampler-as-old"]


def test_a_step_alone_tells_its_objective_and_nothing_divides_it_by_less_than_0(tmp_path: Path) -> None:
    """Hunts `it divides by -6.4803` where groups go on in other micro-batches and the claim averages over them."""
    steps: list[Calls] = []
    for step in range(3):
        parts: Calls = []
        for at in range(2):
            arrays = batch(4, 10 * step + at)
            loss, _ = compute(GSPO, arrays, normalizer=np.float32(8))
            parts.append((arrays | {"groups": np.array([0, 0, 1, 1])}, {"loss": loss, "normalizer": 8.0}))
        steps.append(parts)
    claimed = gspo.Objective.dapo().to_dict()
    found = audit_trace(write(tmp_path, steps, objective=claimed, micro_batches="sum"))
    (error,) = found.errors
    assert error.rule == "objective"
    assert "It is the loss with gspo()" in error.message


def test_micro_batches_that_weigh_differently_inside_a_step_are_an_error(tmp_path: Path) -> None:
    """Hunts `agrees` of a loop that lets one micro-batch of each step count three times: no loss scaler does that."""
    steps: list[Calls] = []
    for step in range(3):
        parts = [_call(10 * step + at) for at in range(2)]
        for arrays, fields in parts:
            fields |= {"normalizer": 12.0, "loss": compute(GSPO, arrays, normalizer=np.float32(12))[0]}
            arrays["gradient"] /= 2
        parts[1][0]["gradient"] *= 3
        steps.append(parts)
    (error,) = audit_trace(write(tmp_path, steps, objective="gspo", micro_batches="sum")).errors
    assert error.rule == "gradient-scale"
    assert "between 1 and 3 times" in error.message
    assert "inside step 0" in error.message


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        ("shuffled", "unrelated-logp"),
        ("constant", "unrelated-logp"),
        ("rows", "misaligned-logp"),
        ("stale", "stale-old-logp"),
    ],
)
def test_old_log_probabilities_of_other_responses_are_not_called_stale(fault: str, rule: str, tmp_path: Path) -> None:
    """Hunts `scored with the weights before` of an old_logp that was shuffled apart from its tokens."""
    calls: Calls = []
    for step in range(4):
        arrays = batch(12, step, moved=0.0)
        noise = 0.1 * np.random.default_rng(step).normal(size=arrays["logp"].shape)
        old = {"rows": np.roll(arrays["logp"], 1, axis=0), "constant": 0 * noise, "stale": arrays["logp"] + noise}
        old["shuffled"] = arrays["logp"][np.random.default_rng(step).permutation(12)]
        arrays |= {"behavior_logp": arrays["logp"], "old_logp": old[fault].astype(np.float32)}
        calls.append((arrays, {"loss": compute(GSPO, arrays)[0], "rollout": step, "minibatch": 0}))
    rules = [rule for rule, _ in _found(tmp_path, calls)]
    assert {"unrelated-logp", "misaligned-logp", "stale-old-logp"} & set(rules) == {rule}


def test_gradients_that_were_not_recorded_are_said_to_be_unchecked(tmp_path: Path) -> None:
    calls = [_call(0), _call(1)]
    del calls[1][0]["gradient"]
    found = audit_trace(write(tmp_path, [[one] for one in calls], objective="gspo"))
    assert found.ledger.missing["gradient: not recorded"] == 1


def test_a_resumed_run_that_claims_otherwise_is_told_in_which_setting(tmp_path: Path) -> None:
    """Hunts `claims another run.trainer` alone, of a run that was resumed for more steps."""
    for step, most in enumerate((5, 9)):
        (tmp_path / str(step)).mkdir()
        settings = {"loss_type": "grpo", "importance_sampling_level": "sequence", "max_steps": most}
        run = {"objective": "gspo", "trainer": {"name": "trl", "version": "1.16.0", "settings": settings}}
        arrays, fields = _call(step)
        folder = write(tmp_path / str(step), [[(arrays, fields | {"step": step})]], **run)
        assert folder.is_dir()
    (told,) = [one for one in audit_trace(tmp_path).findings if one.rule == "contradiction"]
    assert "claims another run.trainer than the files before it, in max_steps; the first" in told.message


def test_an_explanation_of_the_losses_alone_says_so(tmp_path: Path) -> None:
    """Hunts `nothing is clipped` of losses whose recorded gradients are no one's."""
    calls = [_call(step) for step in range(3)]
    for step, (arrays, fields) in enumerate(calls):
        fields["loss"], _ = compute(gspo.Objective.gspo(gspo.Clip(0.2, 0.2)), arrays)
        noise = np.random.default_rng(step).normal(size=arrays["logp"].shape)
        arrays["gradient"] = np.where(arrays["mask"], noise, 0).astype(np.float32)
    ((rule, message),) = _found(tmp_path, calls)
    assert rule == "clip.default-range"
    assert "its gradients are not those recorded" in message


@pytest.mark.parametrize(
    ("divisor", "said"),
    [
        (0, "Losses are 0.25 to 0.5 times what is claimed: divided by the number of micro-batches of their step"),
        (4, "Every loss is 0.25 times what is claimed"),
    ],
)
def test_a_factor_is_called_the_number_of_micro_batches_where_it_follows_it(
    divisor: int, said: str, tmp_path: Path
) -> None:
    """Hunts a quarter called `divided by the number of micro-batches` because one step of the run has four."""
    steps: list[Calls] = []
    for step, number in enumerate((2, 4, 3)):
        parts = [_call(10 * step + at) for at in range(number)]
        for arrays, fields in parts:
            right, _ = compute(GSPO, arrays, normalizer=np.float32(24))
            fields |= {"normalizer": 24.0, "loss": right / (divisor or number)}
            del arrays["gradient"]
        steps.append(parts)
    (error,) = audit_trace(write(tmp_path, steps, objective="gspo", micro_batches="sum")).errors
    assert error.rule == "factor"
    assert error.message.endswith(f". {said}")


def test_a_policy_that_stays_old_is_stale_from_its_first_rollout_on(tmp_path: Path) -> None:
    """Hunts `stale since step 3` of a policy frozen at step 0, because the sampler's noise hid how little it had moved at first."""
    calls: Calls = []
    for step in range(5):
        arrays = batch(12, step, moved=0.0)
        noise = np.random.default_rng(step).normal(size=(2, *arrays["logp"].shape)).astype(np.float32)
        arrays |= {
            "behavior_logp": arrays["logp"] + 0.01 * noise[0],
            "old_logp": arrays["logp"] + 0.03 * step * noise[1],
        }
        calls.append((arrays, {"loss": compute(GSPO, arrays)[0], "rollout": step, "minibatch": 0}))
    (message,) = (message for rule, message in _found(tmp_path, calls) if rule == "stale-old-logp")
    assert message.startswith("old_logp is stale since step 1: in 4 first mini-batches")


def test_few_tokens_of_other_responses_are_still_not_called_stale(tmp_path: Path) -> None:
    """Hunts `scored with the weights before` of shuffled rows, where one step of few tokens has a slope far from -1."""
    calls: Calls = []
    for step in range(12):
        arrays = batch(4, step, moved=0.0)
        other = arrays["logp"][[2, 0, 3, 1]]
        arrays |= {"behavior_logp": arrays["logp"], "old_logp": other}
        calls.append((arrays, {"loss": compute(GSPO, arrays)[0], "rollout": step, "minibatch": 0}))
    rules = [rule for rule, _ in _found(tmp_path, calls)]
    assert "unrelated-logp" in rules
    assert "stale-old-logp" not in rules


@pytest.mark.parametrize("moved", [True, False])
def test_a_reference_that_is_the_policy_itself_is_named(moved: bool, tmp_path: Path) -> None:
    """Hunts `agrees` of a KL term that is 0 at every step; before the first update the reference is the policy."""
    claimed = GSPO.replace(penalty=gspo.Penalty("k3", coefficient=0.04))
    calls: Calls = []
    for step in range(3):
        arrays = batch(6, step, moved=0.01 * moved)
        arrays["ref_logp"] = arrays["logp"].copy()
        calls.append((arrays, {"loss": compute(claimed, arrays)[0]}))
    found = _found(tmp_path, calls, objective=claimed.to_dict())
    assert [rule for rule, _ in found] == ["own-reference"] * moved
    assert not moved or "since step 0" in found[0][1]


def test_a_record_of_fewer_bits_than_the_loss_is_called_that(tmp_path: Path) -> None:
    """Hunts "no known deviation" of a right run whose log-probabilities were written in float16."""
    calls = [_call(step) for step in range(4)]
    for arrays, _ in calls:
        del arrays["gradient"]
        arrays |= {name: arrays[name].astype(np.float16) for name in ("logp", "old_logp")}
    ((rule, message),) = _found(tmp_path, calls)
    assert rule == "coarse-record"
    assert "float16, in which log-probabilities were recorded" in message


def test_an_array_of_another_type_is_no_truncated_file(tmp_path: Path) -> None:
    """Hunts `truncated-file` said of a whole file whose mask is floating."""
    arrays, fields = _call(0)
    arrays["mask"] = arrays["mask"].astype(np.float32)
    ((rule, message),) = _found(tmp_path, [(arrays, fields), _call(1)])
    assert rule == "broken-file"
    assert "mask: expected integers or booleans, got F32" in message


def test_an_archive_of_arrays_is_not_called_truncated(tmp_path: Path) -> None:
    """Hunts `truncated` said of an .npz, whose first bytes are a header of 193 gigabytes as safetensors has it."""
    np.savez(tmp_path / "trace.npz", logp=np.zeros(3))
    with pytest.raises(Broken, match="no safetensors file: expected"):
        read_shard(tmp_path / "trace.npz")


@pytest.mark.parametrize("fault", ["temperature", "stale-old-logp"])
def test_old_log_probabilities_of_one_rank_are_told_with_the_rank(fault: str, tmp_path: Path) -> None:
    """Hunts a wrong temperature that is called stale, or told of the whole run, because it is that of one rank of four."""
    for rank in range(4):
        calls: Calls = []
        for step in range(4):
            arrays = batch(12, 10 * rank + step, moved=0.0)
            noise = 0.05 * np.random.default_rng(step).normal(size=arrays["logp"].shape)
            off = {"temperature": 0.1 * arrays["logp"], "stale-old-logp": noise * (step > 0)}[fault]
            arrays["old_logp"] = (arrays["logp"] + off * (rank == 2)).astype(np.float32)
            loss, _ = compute(GSPO, arrays, normalizer=np.float32(48))
            calls.append((arrays, {"loss": loss, "normalizer": 48.0, "rollout": step, "minibatch": 0}))
        (tmp_path / str(rank)).mkdir()
        write(tmp_path / str(rank), [[one] for one in calls], rank=rank, objective="gspo")
    (told,) = [one for one in audit_trace(tmp_path).errors if one.key == "old_logp" and "/" not in one.rule]
    assert told.rule == fault
    assert "on rank 2 alone" in told.message


def test_micro_batches_of_one_number_are_said_to_be_recorded_twice(tmp_path: Path) -> None:
    """Hunts `dropped-group` alone of a writer that numbers every micro-batch 0: the first is replaced by the second."""
    steps: list[Calls] = []
    for step in range(2):
        whole = {"rewards": np.arange(12, dtype=np.float32), "groups": np.arange(12) // 6}
        whole["advantages"] = np.asarray(gspo.group_advantages(whole["rewards"], whole["groups"], ddof=1, eps=1e-6))
        place = {"rollout": step, "minibatch": 0}
        calls: Calls = [(whole, {**place, "kind": "rollout"})]
        for rows in (slice(0, 6), slice(6, 12)):
            arrays = batch(12, step) | whole
            arrays = {name: values[rows] for name, values in arrays.items()}
            loss, _ = compute(GSPO, arrays, normalizer=np.float32(12))
            calls.append((arrays, {**place, "loss": loss, "normalizer": 12.0, "microbatch": 0}))
        steps.append(calls)
    made = {"scale": "std", "ddof": 1, "eps": 1e-6}
    found = audit_trace(write(tmp_path, steps, objective="gspo", advantages=made, group_size=6))
    (told,) = [one.message for one in found.findings if one.rule == "recorded-twice"]
    assert told.startswith("step 0, rank 0, micro-batch 0 is in 0.safetensors and again in 0.safetensors, and 1 other")
    assert "dropped-group" not in [one.rule for one in found.findings]
