"""What else an audit says: gradients by a factor, what is missing, what may not be trusted."""

from __future__ import annotations

import random
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gspo_core as gspo
from gspo_conformance.audit import read_trace
from gspo_conformance.audit.claim import Claim, claim_of
from gspo_conformance.audit.judgement import Audit, audit, with_noise
from gspo_conformance.audit.report import FORMATS, render
from gspo_conformance.words import UsageError

from .faults import Run
from .test_audit import TRL


def _audit(folder: Path, claim: Claim | None = None) -> Audit:
    trace = read_trace(folder)
    return audit(trace, claim or claim_of(trace))


def _changed(folder: Path, change: Any) -> Audit:
    """The audit of TRL's trace with something done to the fields and arrays of every micro-batch."""
    run = Run(TRL)
    for file, fields, arrays in run.parts():
        change(file, fields, arrays)
    run.write(folder)
    return _audit(folder)


def test_a_gradient_of_another_size_is_a_note_of_another_sign_an_error(tmp_path: Path) -> None:
    def scaled(factor: float) -> Audit:
        return _changed(
            tmp_path / str(factor), lambda _, fields, arrays: arrays.update(gradient=factor * arrays["gradient"])
        )

    (note,) = scaled(np.float32(0.5)).findings
    assert (note.rule, note.severity) == ("gradient-scale", "note")
    assert "0.5 times" in note.message
    assert [one.rule for one in scaled(np.float32(-1)).errors] == ["gradient.negated"]


def test_one_scale_of_the_gradient_per_step_is_a_warning(tmp_path: Path) -> None:
    def grow(_: Any, fields: dict[str, Any], arrays: dict[str, Any]) -> None:
        arrays["gradient"] = arrays["gradient"] * np.float32(1 + fields["step"])

    (one,) = _changed(tmp_path, grow).findings
    assert (one.rule, one.severity) == ("gradient-scale", "warning")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("old_logp", "loss: old_logp not recorded"),
        ("advantages", "loss: advantages not recorded"),
        ("logp", "loss: logp not recorded"),
    ],
)
def test_what_is_missing_is_said_and_not_guessed(name: str, reason: str, tmp_path: Path) -> None:
    found = _changed(tmp_path, lambda _, fields, arrays: arrays.pop(name))
    assert found.ledger.missing[reason] == 12
    assert "loss" not in found.ledger.series
    assert found.verdict == "incomplete", "advantages that agree say nothing of the losses"


def test_a_trace_in_which_nothing_can_be_compared_is_incomplete(tmp_path: Path) -> None:
    run = Run(TRL)
    for file in run.files:
        for fields, arrays in zip(file.header["parts"], file.arrays, strict=True):
            fields.pop("loss", None)
            fields.pop("metrics", None)
            for name in ("gradient", "rewards"):
                arrays.pop(name, None)
    run.write(tmp_path)
    found = _audit(tmp_path)
    assert (found.verdict, found.exit_code, found.compared) == ("incomplete", 1, 0)
    assert found.ledger.missing["loss: what the run computed was not recorded"] == 12


def test_how_losses_combine_is_found_where_nobody_says(tmp_path: Path) -> None:
    run = Run(TRL)
    for file in run.files:
        for name in ("micro_batches", "rank_losses"):
            del file.header["run"][name]
    for _, fields, _ in run.parts():
        del fields["normalizer"]
    run.write(tmp_path)
    found = _audit(tmp_path)
    assert found.verdict == "agrees"
    assert any("micro-batches sum fits best" in reason for reason in found.ledger.missing)


def test_every_ratio_one_in_later_mini_batches(tmp_path: Path) -> None:
    run = Run(TRL)
    for _, fields, arrays in run.parts():
        arrays["old_logp"] = arrays["logp"]
        run.replay(fields, arrays)
    run.write(tmp_path)
    found = _audit(tmp_path)
    assert [one.rule for one in found.errors] == ["frozen-ratio"]
    assert "since step 1" in found.errors[0].message
    assert "a learning rate of 0" in found.errors[0].message


def test_a_group_that_no_loss_saw(tmp_path: Path) -> None:
    run = Run(TRL)
    for _, fields, arrays in run.parts():
        if fields["rollout"] == 1:
            arrays["groups"] = np.where(arrays["groups"] == 2, 1, arrays["groups"])
        arrays.pop("rewards")
    run.write(tmp_path)
    (one,) = _audit(tmp_path).errors
    assert one.rule == "dropped-group"
    assert "group 2 of rollout 1" in one.message


def test_groups_that_may_be_spread_over_steps_are_not_held_against_the_run(tmp_path: Path) -> None:
    run = Run(TRL)
    for file in run.files:
        file.header["run"].pop("group_size")
        keep = [at for at, fields in enumerate(file.header["parts"]) if fields.get("kind") != "rollout"]
        file.header["parts"] = [file.header["parts"][at] for at in keep]
        file.arrays = [file.arrays[at] for at in keep]
        for fields in file.header["parts"]:
            fields.pop("rollout")
    run.write(tmp_path)
    found = _audit(tmp_path)
    assert found.verdict == "agrees"
    assert any("groups may be spread over steps" in reason for reason in found.ledger.missing)


def test_a_sampler_that_lies_one_place_beside_the_mask(tmp_path: Path) -> None:
    def shifted(_: Any, fields: dict[str, Any], arrays: dict[str, Any]) -> None:
        mask = arrays["mask"]
        scored = np.where(mask, arrays["logp"], np.float32(0))
        arrays["behavior_logp"] = np.roll(scored, 1, axis=1)

    found = _changed(tmp_path, shifted)
    assert "mask.shifted" in {one.rule for one in found.errors}


def test_the_precision_of_the_run_decides_what_is_a_difference(tmp_path: Path) -> None:
    def rounded(file: Any, fields: dict[str, Any], arrays: dict[str, Any]) -> None:
        file.header["run"]["dtype"] = "bfloat16"
        fields["loss"] = fields["loss"] * (1 + 2**-9)

    assert _changed(tmp_path / "bfloat16", rounded).verdict == "agrees"

    def claimed(file: Any, fields: dict[str, Any], arrays: dict[str, Any]) -> None:
        rounded(file, fields, arrays)
        file.header["run"]["dtype"] = "float32"

    (one,) = _changed(tmp_path / "float32", claimed).errors
    assert one.rule == "factor"
    assert "1.00195 times" in one.message


def test_a_loss_in_bfloat16_is_recognised(tmp_path: Path) -> None:
    def short(_: Any, fields: dict[str, Any], arrays: dict[str, Any]) -> None:
        d = torch.from_numpy(arrays["logp"] - arrays["old_logp"]).bfloat16()
        mask, a = torch.from_numpy(arrays["mask"]), torch.from_numpy(arrays["advantages"]).bfloat16()
        s = torch.exp((d * mask).sum(1) / mask.sum(1))
        loss = -torch.minimum(s * a, s.clamp(1 - 3e-4, 1 + 4e-4) * a).mean() / 2
        fields["loss"], fields["metrics"] = loss.item(), {}
        arrays.pop("gradient")

    (one,) = _changed(tmp_path, short).errors
    assert one.rule == "low-precision"


def test_words_of_a_trace_stay_words(tmp_path: Path) -> None:
    def hostile(file: Any, fields: dict[str, Any], arrays: dict[str, Any]) -> None:
        fields["metrics"] = {"<script>alert(1)</script>\x1b[31m": 1.0}

    found = with_noise(_changed(tmp_path, hostile))
    texts = {form: render(found, form, verbose=True) for form in FORMATS}
    assert "<script>" not in texts["html"]
    assert "\x1b" not in texts["text"] + texts["html"]


@pytest.mark.parametrize("seed", range(5))
def test_no_damage_ends_in_a_traceback(seed: int, tmp_path: Path) -> None:
    draw, folder = random.Random(seed), tmp_path / "trace"
    shutil.copytree(TRL, folder)
    for path in sorted(folder.rglob("*.safetensors")):
        content = bytearray(path.read_bytes())
        header = 8 + int.from_bytes(content[:8], "little")
        for _ in range(draw.choice([0, 1, 4, 20])):
            low, high = (header, len(content)) if draw.random() < 0.7 and header < len(content) else (0, header)
            content[draw.randrange(low, high)] = draw.choice([0, 255, 127, 128])
        path.write_bytes(content)
    with suppress(UsageError):
        found = with_noise(_audit(folder, Claim(gspo.Objective.gspo(), "the test")))
        for form in FORMATS:
            assert render(found, form)


def test_tokens_that_count_and_were_not_scored_are_told_first(tmp_path: Path) -> None:
    """TRL scores nothing where its mask is 0, and leaves 0 there: a mask that is cut on the way to the loss."""

    def unscored(_: Any, fields: dict[str, Any], arrays: dict[str, Any]) -> None:
        arrays["logp"][np.arange(4), arrays["mask"].sum(1) - 1] = 0.0

    found = _changed(tmp_path, unscored)
    one = found.errors[0]
    assert one.rule == "unscored-tokens"
    assert "logp is exactly 0 at 48 counted tokens since step 0, where old_logp is not near it" in one.message
    rules = {other.rule for other in with_noise(found).findings}
    assert not rules & {"misaligned-logp", "noise/first-minibatch", "noise/sample-size"}, "all of it is told once"


def test_tokens_that_both_policies_are_sure_of_are_no_finding(tmp_path: Path) -> None:
    def sure(_: Any, fields: dict[str, Any], arrays: dict[str, Any]) -> None:
        for name in ("logp", "old_logp"):
            arrays[name][:, 0] = 0.0

    assert "unscored-tokens" not in {one.rule for one in _changed(tmp_path, sure).findings}


def test_padding_that_counts_is_warned_of(tmp_path: Path) -> None:
    """Hunts "agrees" without a word of a run whose mask is all ones: every number follows from the recorded arrays."""

    def counted(lengths: Any) -> list[str]:
        def change(_: Any, fields: dict[str, Any], arrays: dict[str, Any]) -> None:
            rows, width = arrays["mask"].shape
            inside = np.arange(width) < np.asarray(lengths)[:rows, None]
            for name in ("logp", "old_logp"):
                arrays[name] = np.where(inside, np.where(arrays["mask"], arrays[name], -1.0), 0.0).astype(np.float32)
            arrays["mask"] = np.ones((rows, width), bool)

        found = _changed(tmp_path / str(lengths), change).findings
        return [one.message for one in found if one.rule == "unscored-ends"]

    (told,) = counted([3, 5, 12, 4])
    assert "nothing is masked, and the last " in told
    assert "have log-probabilities of exactly 0 in both policies" in told
    assert counted([99] * 4) == counted([5] * 4) == []


def test_rollouts_that_are_marked_in_the_wrong_places_are_told(tmp_path: Path) -> None:
    """Hunts advice to score `old_logp` otherwise, for the learning of mini-batches that are marked as first."""

    def marked(_: Any, fields: dict[str, Any], arrays: dict[str, Any]) -> None:
        fields |= {"rollout": fields["step"], "minibatch": 0}

    found = {one.rule: one.message for one in with_noise(_changed(tmp_path, marked)).errors}
    assert "noise/first-minibatch" not in found
    assert "every ratio is 1 in 3 of 6 first mini-batches" in found["mixed-first-minibatches"]
    assert "in the others (steps 1, 3, 5)" in found["mixed-first-minibatches"]


def test_a_micro_batch_that_was_scored_as_another_is_told(tmp_path: Path) -> None:
    kept: dict[int, Any] = {}

    def repeated(_: Any, fields: dict[str, Any], arrays: dict[str, Any]) -> None:
        arrays["logp"] = kept.setdefault(fields["step"], arrays["logp"])

    (one,) = [one for one in _changed(tmp_path, repeated).errors if one.rule == "repeated-logp"]
    assert "logp of micro-batch 1 is that of micro-batch 0 to the last bit, since step 0" in one.message


def test_groups_smaller_than_claimed_are_an_error(tmp_path: Path) -> None:
    """Hunts "agrees": the advantages of groups that were not whole were set aside, and nothing was compared."""
    run = Run(TRL)
    for file in run.files:
        file.header["run"]["group_size"] = 8
    run.write(tmp_path)
    (one,) = [one for one in _audit(tmp_path).errors if one.rule == "group-size"]
    assert one.message == "every group has 4 responses since rollout 0, where 8 are claimed"
