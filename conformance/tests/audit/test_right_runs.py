"""Right runs of a kind that no other test has: every number of them agrees, and nothing is said against them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import gspo_core as gspo
from gspo_conformance.audit import audit_trace
from gspo_conformance.tensors import NumPyArray
from gspo_core.recording import Stored, write_shard

WIDTH = 9
Calls = list[tuple[dict[str, NumPyArray], dict[str, Any]]]


def batch(number: int, seed: int, moved: float = 0.01) -> dict[str, NumPyArray]:
    """Responses of 1 to `WIDTH` - 1 tokens behind one of the prompt."""
    stream = np.random.default_rng(seed)
    old = -stream.gamma(0.5, 1.0, (number, WIDTH))
    arrays = {"logp": old + moved * stream.normal(size=old.shape), "old_logp": old, "ref_logp": old - 0.3}
    arrays["advantages"] = stream.normal(size=number)
    found = {name: values.astype(np.float32) for name, values in arrays.items()}
    ends = 1 + stream.integers(1, WIDTH, number)[:, None]
    return found | {"mask": (np.arange(WIDTH) >= 1) & (np.arange(WIDTH) < ends)}


def compute(objective: gspo.Objective, arrays: dict[str, NumPyArray], **more: Any) -> tuple[float, dict[str, float]]:
    """The loss and the metrics that the run reports."""
    names = [name for name in ("logp", "old_logp", "advantages", "ref_logp") if name in arrays]
    names = [name for name in names if name != "ref_logp" or objective.penalty is not None]
    out = gspo.policy_loss(objective, **{name: arrays[name] for name in names}, sequences=arrays["mask"], **more)
    return float(out.loss), {name: float(value) for name, value in out.metrics.items()}


def gradient_of(objective: gspo.Objective, arrays: dict[str, NumPyArray], **more: Any) -> NumPyArray:
    """d loss / d logp, in float32."""
    names = ("logp", "old_logp", "advantages", *(["ref_logp"] if objective.penalty is not None else []))
    given = {name: arrays[name] for name in names}
    return np.asarray(gspo.policy_gradient(objective, **given, sequences=arrays["mask"], **more), np.float32)


def write(folder: Path, steps: Sequence[Calls], rank: int = 0, **run: Any) -> Path:
    """A trace of a rank by hand, a file per step."""
    for step, calls in enumerate(steps):
        arrays = {f"{at}.{name}": values for at, (part, _) in enumerate(calls) for name, values in part.items()}
        parts = [{"step": step, "microbatch": at, **fields} for at, (_, fields) in enumerate(calls)]
        header = json.dumps({"version": 1, "rank": rank, "run": run, "parts": parts})
        save_file(arrays, folder / f"{step}.safetensors", {"gspo_trace": header})
    return folder


@pytest.mark.parametrize("normalizer", [None, 16.0])
def test_the_kl_penalty_is_divided_as_the_loss_is(normalizer: float | None, tmp_path: Path) -> None:
    """Hunts a metric that is told wrong in every run with a KL term: the sum in place of the mean."""
    objective = gspo.Objective.gspo().replace(penalty=gspo.Penalty("k3", coefficient=0.05))
    arrays, more = batch(8, 0), {} if normalizer is None else {"normalizer": np.float32(normalizer)}
    loss, metrics = compute(objective, arrays, **more)
    fields = {"loss": loss, "metrics": metrics} | ({} if normalizer is None else {"normalizer": normalizer})
    found = audit_trace(write(tmp_path, [[(arrays, fields)]], objective=objective.to_dict()))
    assert found.verdict == "agrees"
    assert found.ledger.series["metrics.kl_penalty"].compared == 1
    assert metrics["kl_penalty"] > 0.01


def test_trainers_count_the_dual_bound_apart(tmp_path: Path) -> None:
    objective = gspo.Objective.grpo(gspo.Clip(0.2, 0.2, dual=1.5))
    arrays = batch(8, 1, moved=1.0)
    loss, metrics = compute(objective, arrays)
    range_alone = metrics["clip_fraction"] - metrics["clip_fraction_dual"]
    assert metrics["clip_fraction_dual"] > 0.05
    said = {"clip_ratio/region_mean": range_alone, "actor/pg_clipfrac": range_alone}
    said["actor/pg_clipfrac_lower"] = metrics["clip_fraction_dual"]
    trace = write(tmp_path, [[(arrays, {"loss": loss, "metrics": said})]], objective=objective.to_dict())
    found = audit_trace(trace)
    assert found.verdict == "agrees"
    assert found.compared == 4


@pytest.mark.parametrize(
    ("weights", "verdict"), [("counts", "agrees"), ("one over their number", "differs"), ("unknown", "agrees")]
)
def test_means_of_micro_batches_are_weighed_by_the_loop_as_their_gradients_say(
    weights: str, verdict: str, tmp_path: Path
) -> None:
    """Hunts "means are averaged" said of a loop that multiplies each mean by its share of the responses."""
    steps: list[Calls] = []
    for step in range(3):
        calls: Calls = []
        for at, number in enumerate((2, 5, 1)):
            arrays = batch(number, 10 * step + at, moved=1e-5)
            loss, _ = compute(gspo.Objective.gspo(), arrays)
            share = number / 8 if weights == "counts" else 1 / 3
            gradient = np.float32(share) * gradient_of(gspo.Objective.gspo(), arrays)
            arrays |= {} if weights == "unknown" else {"gradient": gradient}
            calls.append((arrays, {"loss": loss}))
        steps.append(calls)
    found = audit_trace(write(tmp_path, steps, objective="gspo"))
    assert found.verdict == verdict
    assert all(one.rule == "distribution.mean-of-means" for one in found.errors)
    assert not [one for one in found.findings if one.rule == "gradient-scale" and one.severity != "note"]
    assert any("how the loop weighs micro-batches" in reason for reason in found.ledger.missing) == (
        verdict == "agrees"
    )


def test_a_gradient_that_arrived_in_bfloat16_is_rounded_once_more(tmp_path: Path) -> None:
    arrays = batch(8, 3, moved=1e-5)
    loss, _ = compute(gspo.Objective.gspo(), arrays)
    gradient = gradient_of(gspo.Objective.gspo(), arrays)
    bits = ((gradient.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)
    head = {"version": 1, "run": {"objective": "gspo"}, "parts": [{"step": 0, "loss": loss}]}
    kinds = {"bool": "BOOL", "float32": "F32", "uint16": "BF16"}
    stored = {
        f"0.{name}": Stored(kinds[values.dtype.name], values.shape, np.ascontiguousarray(values).tobytes())
        for name, values in (arrays | {"gradient": bits}).items()
    }
    write_shard(tmp_path / "0.safetensors", head, stored)
    assert audit_trace(tmp_path).verdict == "agrees"


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("said", [{"normalizer": 12.0}, {}])
def test_what_is_missing_of_a_step_is_no_mistake_of_the_rest(cut: bool, said: dict[str, float], tmp_path: Path) -> None:
    """Hunts `it divides by 12 where the union has 8` of a step whose third micro-batch was lost with its file."""
    for step, at in [(step, at) for step in range(3) for at in range(3)]:
        arrays, fields = batch(4, 10 * step + at), {"step": step, "microbatch": at, **said}
        fields["loss"], _ = compute(gspo.Objective.gspo(), arrays, normalizer=np.float32(12))
        header = json.dumps({"version": 1, "run": {"objective": "gspo"}, "parts": [fields]})
        save_file(
            {f"0.{n}": x for n, x in arrays.items()}, tmp_path / f"{step}-{at}.safetensors", {"gspo_trace": header}
        )
    lost = tmp_path / ("1-2.safetensors" if cut else "1-1.safetensors")
    lost.write_bytes(lost.read_bytes()[:200]) if cut else lost.unlink()
    found = audit_trace(tmp_path)
    assert [one.rule for one in found.errors] == ["truncated-file"] * cut
    assert found.ledger.missing["step loss: micro-batches of the step are missing"] == 1
    assert found.compared >= 6 + 2


@pytest.mark.parametrize(("run", "words"), [({}, "step 1 was not recorded, nor 1 later step"), ({"every": 2}, None)])
def test_a_step_that_was_lost_is_told(run: dict[str, int], words: str | None, tmp_path: Path) -> None:
    arrays = batch(4, 0)
    loss, _ = compute(gspo.Objective.gspo(), arrays)
    write(tmp_path, [[(arrays, {"loss": loss})]] * 6, objective="gspo", **run)
    for step in (1, 4):
        (tmp_path / f"{step}.safetensors").unlink()
    found = audit_trace(tmp_path)
    assert found.verdict == "agrees"
    assert [one.message for one in found.findings if one.rule == "gap"] == ([words] if words else [])


@pytest.mark.parametrize("normalizer", [None, 16.0])
@pytest.mark.parametrize("importance", [None, "sequence"])
def test_a_kl_penalty_with_a_mean_of_its_own_agrees(importance: Any, normalizer: float | None, tmp_path: Path) -> None:
    """Hunts a penalty that is divided by the M of the loss too, where the mean over its tokens was claimed."""
    penalty = gspo.Penalty("k3", 0.05, importance=importance, aggregation="token_mean")
    objective = gspo.Objective.gspo().replace(penalty=penalty)
    arrays, more = batch(8, 0), {} if normalizer is None else {"normalizer": np.float32(normalizer)}
    loss, metrics = compute(objective, arrays, **more)
    arrays |= {"gradient": gradient_of(objective, arrays, **more)}
    fields = {"loss": loss, "metrics": metrics} | ({} if normalizer is None else {"normalizer": normalizer})
    found = audit_trace(write(tmp_path, [[(arrays, fields)]], objective=objective.to_dict()))
    assert (found.verdict, found.ledger.series["gradient"].compared) == ("agrees", 1)


def test_the_slopes_of_a_penalty_that_all_but_cancel_are_rounded_before_they_do(tmp_path: Path) -> None:
    """Hunts `gradient-differs` of a right run near its reference policy, where k3 alone has a gradient and it is a difference of ones."""
    objective = gspo.Objective.gspo().replace(penalty=gspo.Penalty("k3", 0.05))
    arrays = batch(8, 0) | {"advantages": np.zeros(8, np.float32)}
    z = np.random.default_rng(1).normal(size=arrays["logp"].shape).astype(np.float32)
    arrays["ref_logp"] = arrays["logp"] - np.float32(2e-4) * z
    loss, _ = compute(objective, arrays)
    # As autodiff has it in float32: β/|y| - β/|y| e^-z.
    weight = np.where(arrays["mask"], np.float32(0.05 / 8) / arrays["mask"].sum(1, keepdims=True), 0).astype(np.float32)
    slopes = weight - weight * np.exp(arrays["ref_logp"] - arrays["logp"])
    trace = write(tmp_path, [[(arrays | {"gradient": slopes}, {"loss": loss})]], objective=objective.to_dict())
    found = audit_trace(trace)
    assert (found.verdict, found.ledger.series["gradient"].compared) == ("agrees", 1)


@pytest.mark.parametrize("closed", [False, True])
def test_a_run_that_ends_inside_its_first_rollout_has_dropped_no_group(closed: bool, tmp_path: Path) -> None:
    """Hunts `dropped-group` of a run that was killed before the mini-batches of its other groups."""
    arrays, given = batch(4, 0), {"groups": np.arange(4) // 2, "rewards": np.array([1, 0, 0, 1], np.float32)}
    loss, _ = compute(gspo.Objective.gspo(), arrays)
    whole = {
        "rewards": np.tile(given["rewards"], 2),
        "groups": np.arange(8) // 2,
        "advantages": np.tile(arrays["advantages"], 2),
    }
    place = {"rollout": 0, "minibatch": 0}
    calls = [(whole, {**place, "kind": "rollout"}), (arrays | given, {**place, "loss": loss})]
    trace = write(tmp_path, [calls], objective="gspo")
    if closed:
        write_shard(trace / "end.safetensors", {"version": 1, "parts": [], "end": {"reason": "closed", "step": 1}}, {})
    rules = [one.rule for one in audit_trace(trace).errors]
    assert ("dropped-group" in rules) is closed


def _unmoved(folder: Path, advantages: Sequence[float], **arrays: NumPyArray) -> list[str]:
    """The errors of two rollouts of two mini-batches, with s = 1 and these advantages of the mini-batches."""
    steps: list[Calls] = []
    for step, advantage in enumerate((*advantages, *advantages)):
        one = batch(16, step) | arrays | {"advantages": np.full(16, advantage, np.float32)}
        one |= {"old_logp": one["logp"]}
        loss, _ = compute(gspo.Objective.gspo(), one)
        steps.append([(one, {"loss": loss, "rollout": step // 2, "minibatch": step % 2})])
    return [one.rule for one in audit_trace(write(folder, steps, objective="gspo")).errors]


@pytest.mark.parametrize(("advantages", "rules"), [((0, 0), []), ((0, 1), []), ((1, 0), ["frozen-ratio"])])
def test_nothing_moves_a_policy_before_the_first_advantage_that_is_not_0(
    advantages: tuple[float, float], rules: list[str], tmp_path: Path
) -> None:
    """Hunts `old_logp is the detached new policy` of a rollout whose rewards are all alike."""
    assert _unmoved(tmp_path, advantages) == rules


def test_a_policy_that_is_sure_of_its_tokens_has_few_bits_and_is_not_rounded(tmp_path: Path) -> None:
    """Hunts `rounded to bfloat16` where a float32 log-softmax near 0 has the spacing of its logits alone."""
    logits = np.random.default_rng(0).normal(0, 1, (16, WIDTH, 28)).astype(np.float32)
    logits[..., 0] += 16
    top = logits.max(-1, keepdims=True)
    logp = logits[..., 0] - (top + np.log(np.exp(logits - top).sum(-1, keepdims=True)))[..., 0]
    assert -1e-3 < logp.mean() < 0
    assert _unmoved(tmp_path, (0, 0), logp=logp) == []


@pytest.mark.parametrize("mode", ["sequence_mean_token_mean", "token_mean"])
def test_ranks_that_are_averaged_divide_by_the_step_s_count_per_rank(mode: Any, tmp_path: Path) -> None:
    """Hunts `every loss is 2 times what is claimed` of two ranks of unequal size that say nothing of how they divide."""
    objective = gspo.Objective.gspo().replace(aggregation=mode)
    for step in range(3):
        parts = [batch(number, 10 * step + at) for at, number in enumerate((2, 3, 1, 6))]
        count = sum(int(one["mask"].sum()) for one in parts) if mode == "token_mean" else 12
        for at, arrays in enumerate(parts):
            loss, _ = compute(objective, arrays, normalizer=np.float32(count / 2))
            fields = {"step": step, "microbatch": at % 2, "loss": loss}
            told = {"version": 1, "rank": at // 2, "run": {"objective": objective.to_dict()}, "parts": [fields]}
            named = {f"0.{name}": values for name, values in arrays.items()}
            save_file(named, tmp_path / f"{step}-{at}.safetensors", {"gspo_trace": json.dumps(told)})
    found = audit_trace(tmp_path)
    assert (found.verdict, found.ledger.series["step loss"].compared) == ("agrees", 3)
