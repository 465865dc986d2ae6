"""The format in the hands of a stranger: written with NumPy and safetensors alone, with the slips that one makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from gspo_conformance.audit import audit_trace
from gspo_conformance.audit.judgement import Audit
from gspo_conformance.cli import main
from gspo_conformance.tensors import NumPyArray

MASK = np.array([[1, 1, 0], [1, 1, 1]], bool)


def batch(**arrays: NumPyArray) -> dict[str, NumPyArray]:
    logp = -np.ones((2, 3), np.float32)
    return {"logp": logp, "old_logp": logp, "mask": MASK, "advantages": np.array([1, -0.5], np.float32)} | arrays


def write(
    path: Path, arrays: dict[str, NumPyArray] | None = None, *, prefix: str = "0.", rank: int = 0, **fields: Any
) -> Path:
    """One file with one part, as the page on audits shows it; `run` is merged into the claim. Returns its folder."""
    run = {"objective": "gspo"} | fields.pop("run", {})
    part = {"step": 0, "rollout": 0, "minibatch": 0, "loss": -0.25} | fields
    header = {"version": 1, "rank": rank, "run": run, "parts": [part]}
    tensors = {f"{prefix}{name}": np.ascontiguousarray(values) for name, values in (arrays or batch()).items()}
    path.parent.mkdir(exist_ok=True, parents=True)
    save_file(tensors, path, metadata={"gspo_trace": json.dumps(header)})
    return path.parent


def rules(found: Audit) -> list[str]:
    return [one.rule for one in found.findings if one.severity != "note"]


def test_the_name_of_a_preset_is_a_claim(tmp_path: Path) -> None:
    folder = write(tmp_path / "a.safetensors")
    found = audit_trace(folder)
    assert (found.verdict, found.compared, found.claim.objective.ratio) == ("agrees", 1, "sequence")
    assert audit_trace(write(tmp_path / "a.safetensors", objective="reinforce_pp")).verdict == "differs"


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32, np.int64])
def test_integers_of_any_width_are_masks_and_groups(dtype: type, tmp_path: Path) -> None:
    """Hunts group ids of uint8 that were read as booleans."""
    four = {name: np.concatenate([values, values]) for name, values in batch(mask=3 * MASK.astype(dtype)).items()}
    four |= {"rewards": np.array([1, 0, 1, 0], np.float32), "groups": np.array([5, 5, 6, 6], dtype)}
    four["advantages"] = np.array([1, -1, 1, -1], np.float32) * np.float32(0.5**0.5)
    found = audit_trace(write(tmp_path / "a.safetensors", four, loss=0.0, run={"advantages": {"eps": 0.0}}))
    assert (found.verdict, found.compared, found.tokens) == ("agrees", 2, 10)


@pytest.mark.parametrize(
    ("arrays", "options", "words"),
    [
        (batch(old_logprobs=np.ones(3)), {}, "did you mean 'old_logp'?"),
        (batch(), {"prefix": ""}, "such as '0."),
        (batch(), {"prefix": "1."}, "of 1 part"),
        (batch(logp=np.ones((1, 2, 3))), {}, "at most two axes, got shape [1, 2, 3]"),
        (batch(), {"objective": "gsppo"}, "unknown preset 'gsppo'; did you mean 'gspo'?"),
        (
            batch(),
            {"run": {"advantages": {"ddoff": 1}}},
            "run.advantages: unknown setting 'ddoff'; did you mean 'ddof'?",
        ),
        (batch(), {"run": {"advantages": {"scale": "stdev"}}}, "run.advantages: scale: expected one of"),
        (batch(), {"run": {"advantages": {"ddof": "one"}}}, "run.advantages: ddof: expected a number"),
    ],
)
def test_a_slip_is_one_sentence(
    arrays: dict[str, NumPyArray],
    options: dict[str, Any],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["audit", str(write(tmp_path / "a.safetensors", arrays, **options))]) == 2
    assert words in capsys.readouterr().err


def test_misspelt_fields_are_told(tmp_path: Path) -> None:
    found = audit_trace(write(tmp_path / "a.safetensors", mini_batch=0, run={"groupsize": 4}))
    told = [one.message for one in found.findings if one.rule == "unknown-field"]
    assert [words.split("did you mean ")[1] for words in told] == ["minibatch?", "group_size?"]


def test_other_files_of_the_folder_are_left_out_and_other_claims_told(tmp_path: Path) -> None:
    write(tmp_path / "0/a.safetensors")
    write(tmp_path / "1/a.safetensors", rank=1, run={"objective": "grpo"})
    save_file({"weight": np.ones(3)}, tmp_path / "model.safetensors")
    found = audit_trace(tmp_path)
    assert found.verdict == "agrees"
    assert rules(found) == ["other-file", "contradiction"]


def _rollout(step: int, rollout: int = 0) -> dict[str, Any]:
    rewards = np.array([1, 0], np.float32)
    arrays = {"rewards": rewards, "groups": np.zeros(2, np.int64), "advantages": (rewards - 0.5) * np.float32(2**0.5)}
    return {"arrays": arrays, "kind": "rollout", "step": step, "rollout": rollout}


def test_a_rollout_that_a_resumed_run_recorded_again_counts_once(tmp_path: Path) -> None:
    """Hunts groups twice their size, of which every advantage is wrong."""
    for life in ("first", "resumed"):
        write(tmp_path / life / "rollout.safetensors", **_rollout(0))
        write(tmp_path / life / "loss.safetensors", microbatch=0)
    found = audit_trace(
        write(tmp_path / "x/a.safetensors", step=1, minibatch=1, run={"advantages": {"eps": 0.0}}).parent
    )
    assert (found.verdict, found.compared) == ("agrees", 3)


def test_rollouts_that_are_counted_from_0_again_are_told_and_not_compared(tmp_path: Path) -> None:
    for step in (0, 1):
        write(tmp_path / f"{step}-rollout.safetensors", **_rollout(step))
        write(tmp_path / f"{step}-loss.safetensors", step=step)
    found = audit_trace(tmp_path)
    assert (found.verdict, rules(found)) == ("agrees", ["rollout-twice"])
    assert "advantages: two rollouts under one number" in found.ledger.missing


def test_a_loss_of_0_says_nothing_of_what_divides_it(tmp_path: Path) -> None:
    """Hunts `gradient-scale`, said of first mini-batches in which the advantages of a micro-batch add up to 0."""
    mask, a = np.ones((2, 4), bool), np.array([1, -1], np.float32)
    for step in (0, 1):
        for at in (0, 1):
            shift = np.float32(1e-4 * step * (at + 1))
            s = np.exp(np.array([shift, 0.0]))
            logp = -np.ones((2, 4), np.float32)
            arrays = {
                "logp": logp + np.array([[shift], [0]], np.float32),
                "old_logp": logp,
                "mask": mask,
                "advantages": a,
            }
            arrays["gradient"] = np.repeat(-(s * a / 16)[:, None], 4, axis=1).astype(np.float32)
            place = {"step": step, "minibatch": step, "microbatch": at}
            write(tmp_path / f"{step}-{at}.safetensors", arrays, loss=float(-(s * a).sum() / 4), **place)
    found = audit_trace(tmp_path)
    assert (found.verdict, rules(found)) == ("agrees", [])


def test_a_loss_that_was_not_recorded_is_in_the_way_of_no_diagnosis(tmp_path: Path) -> None:
    """Hunts a crash: of two micro-batches without a number one has no loss, the other a wrong one."""
    write(tmp_path / "a.safetensors", loss=7.0)
    header = {"version": 1, "parts": [{"step": 0}]}
    save_file(
        {f"0.{name}": values for name, values in batch().items()},
        tmp_path / "b.safetensors",
        {"gspo_trace": json.dumps(header)},
    )
    assert audit_trace(tmp_path).verdict == "differs"


def test_an_empty_response_that_counts_is_told_from_a_mask_that_is_ignored(tmp_path: Path) -> None:
    for step in range(3):
        shift = 1e-4 * (step + 1)
        logp = np.where([[0, 0, 0], [1, 1, 1]], -1.0, 0.0).astype(np.float32)
        arrays = batch(old_logp=logp, mask=logp < 0, logp=(logp + shift * (logp < 0)).astype(np.float32))
        loss = -(1 - 0.5 * np.exp(np.float64(arrays["logp"][1, 0]) + 1)) / 2
        arrays["gradient"] = (0.25 * np.exp(shift) / 3 * (logp < 0)).astype(np.float32)
        write(tmp_path / f"{step}.safetensors", arrays, step=step, minibatch=step, loss=float(loss))
    assert rules(audit_trace(tmp_path)) == ["empty-counted"]


def test_wrong_losses_of_ranks_combine_as_right_ones_would(tmp_path: Path) -> None:
    """Hunts a loss of the step that is half of what the run had, because half of a wrong one comes nearer."""
    for rank, loss in ((0, -0.25), (1, -0.375)):
        write(tmp_path / f"{rank}.safetensors", rank=rank, loss=loss, normalizer=4)
    assert [(row.run, row.truth) for row in audit_trace(tmp_path).rows] == [(-0.625, -0.25)]


def test_log_probabilities_one_place_apart_are_no_temperature(tmp_path: Path) -> None:
    """Hunts a slope of -1, which is that of scorings of different tokens."""
    logp = -np.random.default_rng(3).gamma(1.0, size=(4, 12)).astype(np.float32)
    arrays = {"logp": logp, "old_logp": np.roll(logp, 1, axis=1), "mask": np.ones((4, 12), bool)}
    arrays["advantages"] = np.zeros(4, np.float32)
    found = audit_trace(write(tmp_path / "a.safetensors", arrays, loss=0.0))
    assert next(one.message for one in found.errors if one.rule == "misaligned-logp").startswith(
        "old_logp of a token is logp of the token before"
    )
    assert "temperature" not in rules(found)


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (2, 0)])
def test_a_micro_batch_without_a_token_is_read(shape: tuple[int, int], tmp_path: Path) -> None:
    """Hunts a crash where the last scored token is looked for, found by the nightly fuzz."""
    nothing = np.zeros(shape, np.float32)
    arrays = {"logp": nothing, "old_logp": nothing, "mask": np.ones(shape, bool)}
    arrays["advantages"] = np.zeros(shape[0], np.float32)
    assert audit_trace(write(tmp_path / "a.safetensors", arrays, loss=0.0)).verdict != "differs"
