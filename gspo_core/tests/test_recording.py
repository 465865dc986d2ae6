"""A recorder writes what it was given, in the order of the steps, into whole files, and never raises into the training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gspo_core as gspo
from gspo_core import recording
from gspo_core.recording import Recorder, Stored, guarded, json_number, layout_arrays, shard_head, write_shard

from .notes import Notes, files_of, places, read, train

# Files


def test_a_file_is_the_arrays_behind_an_aligned_header_and_the_library_of_the_format_reads_it(tmp_path: Path) -> None:
    arrays = {"0.a": np.arange(6.0).reshape(2, 3), "0.b": np.zeros((0, 4)), "1.a": np.asarray(7.0)}
    stored = {name: Stored("F64", array.shape, array.tobytes()) for name, array in arrays.items()}
    for long in range(8):
        header = {"parts": [{"note": "x" * long}, {}]}
        head = shard_head(header, stored)
        assert int.from_bytes(head[:8], "little") == len(head) - 8
        assert len(head) % 8 == 0
        path = tmp_path / "deep" / "er" / f"{long}.safetensors"
        write_shard(path, header, stored)
        assert path.read_bytes() == head + b"".join(one.content for one in stored.values())
        found, parts = read(path)
        assert found == header
        np.testing.assert_equal(
            [part[1] for part in parts], [{"a": arrays["0.a"], "b": arrays["0.b"]}, {"a": arrays["1.a"]}]
        )
    assert len(list(tmp_path.rglob("*.*"))) == 8
    text = head[8:].decode().rstrip()
    assert text == json.dumps(json.loads(text), separators=(",", ":")), "as short as JSON can be"


def test_the_size_of_what_is_stored_is_in_bytes() -> None:
    assert Stored("F64", (3,), np.arange(3.0).data).size == 24
    assert Stored("BF16", (3,), bytearray(6)).size == 6


def test_readers_see_the_whole_of_a_file_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    write_shard(path, {"parts": []}, {})
    before = path.read_bytes()
    bad = {"0.a": Stored("F64", (1,), bytes(8)), "0.b": Stored("F64", (1,), memoryview(bytes(16))[::2])}
    for target in (path, tmp_path / "other.safetensors"):
        with pytest.raises((BufferError, ValueError)):
            write_shard(target, {"parts": [{}]}, bad)
    assert path.read_bytes() == before
    assert path.with_suffix(".unfinished").exists()
    assert not (tmp_path / "other.safetensors").exists()


def test_a_header_that_is_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_shard(tmp_path / "one.safetensors", {"parts": [float("nan")]}, {})
    assert not list(tmp_path.iterdir())


def test_numbers_that_json_has_not_have_names() -> None:
    found = [json_number(value) for value in (0.5, -2.0, 0.0, float("inf"), -float("inf"), float("nan"))]
    assert found == [0.5, -2.0, 0.0, "inf", "-inf", "nan"]


def test_sequences_are_a_mask_or_offsets() -> None:
    mask, offsets, flags = np.ones((2, 3), bool), np.asarray([0, 2, 3]), np.asarray([True, False, True])
    assert layout_arrays(mask)["mask"] is mask
    assert list(layout_arrays(gspo.Padded(mask))) == ["mask"]
    assert layout_arrays(gspo.Padded(mask))["mask"] is mask
    assert list(layout_arrays(gspo.Packed(offsets))) == ["offsets"]
    packed = layout_arrays(gspo.Packed(offsets, mask=flags))
    assert packed["offsets"] is offsets
    assert packed["mask"] is flags
    with pytest.raises(ValueError, match=r"^sequences: parts of responses"):
        layout_arrays(gspo.Padded(mask, context="a group of ranks"))


# Steps


def test_what_was_given_is_there(tmp_path: Path) -> None:
    objective, other = gspo.Objective.gspo(), gspo.Objective.grpo()
    logp, mask = np.asarray([[-1.0, -2.0]]), np.asarray([[True, False]])
    with Notes(tmp_path, rank=3, trainer={"name": "mine"}, group_size=None) as recorder:
        recorder.part(
            objective=objective, loss=-0.5, metrics={"a": 1.0, "b": np.inf}, logp=logp, sequences=gspo.Padded(mask)
        )
        recorder.part(objective=objective, normalizer=2, logp=logp, sequences=None)
        recorder.part(objective=other, logp=logp, ref_logp=None)
        recorder.step(logp=-logp)
    files = files_of(tmp_path, rank=3)
    header, parts = files["000000000"]
    run = {"every": 1, "trainer": {"name": "mine"}, "objective": objective.to_dict()}
    assert {name: header[name] for name in ("version", "rank", "run")} == {"version": 1, "rank": 3, "run": run}
    assert [part[0] for part in parts] == [
        {"step": 0, "microbatch": 0, "loss": -0.5, "metrics": {"a": 1.0, "b": "inf"}},
        {"step": 0, "microbatch": 1, "normalizer": 2.0},
        {"step": 0, "microbatch": 2, "objective": other.to_dict()},
        {"step": 0, "microbatch": 3},
    ]
    expected = [{"logp": logp, "mask": mask}, {"logp": logp}, {"logp": logp}, {"logp": -logp}]
    np.testing.assert_equal([part[1] for part in parts], expected)
    assert files["end"][0] == {"version": 1, "rank": 3, "run": run, "parts": [], "end": {"reason": "closed", "step": 1}}
    assert list(files) == ["000000000", "end"]


def test_every_step_is_a_file_and_a_step_without_a_loss_is_none(tmp_path: Path) -> None:
    recorder = Notes(tmp_path, first_step=41)
    assert recorder.ended == ""
    recorder.advance()
    train(recorder, 2, calls=2)
    recorder.step()
    recorder.close()
    assert places(tmp_path) == [(41, 0, None, None, None), (41, 1, None, None, None),
                                 (42, 0, None, None, None), (42, 1, None, None, None)]  # fmt: skip
    assert list(files_of(tmp_path)) == ["000000041", "000000042", "end"]
    assert files_of(tmp_path)["end"][0]["end"]["step"] == 43
    values = [part[1]["logp"][0] for _, parts in files_of(tmp_path).values() for part in parts]
    assert values == [41, 41.1, 42, 42.1]


def test_one_step_in_so_many_is_recorded_and_all_are_counted(tmp_path: Path) -> None:
    with Notes(tmp_path, every=3) as recorder:
        seen = []
        for _ in range(7):
            seen.append(recorder.recording)
            train(recorder, 1)
    assert seen == [True, False, False] * 2 + [True]
    assert [place[0] for place in places(tmp_path)] == [0, 3, 6]
    assert files_of(tmp_path)["end"][0]["end"]["step"] == 7


def test_a_rollout_is_recorded_with_all_its_mini_batches_or_not_at_all(tmp_path: Path) -> None:
    rewards, groups, advantages = np.asarray([1.0, 0.0]), np.asarray([0, 0]), np.asarray([0.5, -0.5])
    with Notes(tmp_path, every=2) as recorder:
        for _ in range(3):
            recorder.rollout(rewards=rewards, groups=groups, advantages=advantages)
            train(recorder, 3)
    assert places(tmp_path) == [
        (0, 0, 0, 0, "rollout"), (0, 0, 0, 0, None), (1, 0, 0, 1, None), (2, 0, 0, 2, None),
        (6, 0, 2, 0, "rollout"), (6, 0, 2, 0, None), (7, 0, 2, 1, None), (8, 0, 2, 2, None),
    ]  # fmt: skip
    (_, arrays), *_ = files_of(tmp_path)["000000000"][1]
    np.testing.assert_equal(arrays, {"rewards": rewards, "groups": groups, "advantages": advantages})


def test_a_rollout_without_rewards_only_counts(tmp_path: Path) -> None:
    with Notes(tmp_path) as recorder:
        recorder.rollout(groups=np.zeros(2))
        train(recorder, 1)
    assert places(tmp_path) == [(0, 0, 0, 0, None)]


def test_what_stands_beside_a_call_goes_with_the_next_alone(tmp_path: Path) -> None:
    with Notes(tmp_path, every=2) as recorder:
        recorder.beside(behavior_logp=np.ones(3))
        recorder.beside(rewards=np.zeros(3))
        train(recorder, 1, calls=2)
        recorder.beside(rewards=np.ones(3))
        train(recorder, 2)
    names = [sorted(part[1]) for _, parts in files_of(tmp_path).values() for part in parts]
    assert names == [["behavior_logp", "logp", "rewards"], ["logp"], ["logp"]]


# When copies arrive


def test_steps_are_written_when_their_copies_arrive_and_at_most_two_wait(tmp_path: Path) -> None:
    recorder, written = Notes(tmp_path), []
    recorder.arrived = False
    for _ in range(5):
        train(recorder, 1)
        written.append(len(files_of(tmp_path)))
    assert written == [0, 0, 1, 2, 3]
    recorder.arrived = True
    train(recorder, 1)
    assert len(files_of(tmp_path)) == 6
    recorder.arrived = False
    recorder.part(logp=np.zeros(3))
    recorder.close()
    assert [place[0] for place in places(tmp_path)] == list(range(7))


def test_a_backend_that_does_not_say_is_always_ready_and_must_say_the_rest(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    assert recorder.ready([object()])
    for method in (lambda: recorder.keep("logp", 1), lambda: recorder.store(1), lambda: recorder.scalar(1)):
        with pytest.raises(NotImplementedError):
            method()


# Budgets


def test_what_is_written_is_counted_and_never_more_than_the_budget(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Notes(tmp_path / "free") as free:
        train(free, 3)
    sizes = [path.stat().st_size for path in sorted((tmp_path / "free" / "rank-0").glob("0*"))]
    assert free.written == sum(sizes)
    assert not caplog.records
    for missing, kept in ((0, 3), (1, 2)):
        folder = tmp_path / str(missing)
        with Notes(folder, max_bytes=sum(sizes) - missing) as recorder:
            train(recorder, 3)
        assert [place[0] for place in places(folder)] == list(range(kept))
        assert recorder.written == sum(sizes[:kept])
    end = files_of(tmp_path / "1")["end"][0]["end"]
    assert (end["reason"], end["step"]) == ("budget", 2)
    told = f"{sum(sizes[:2])} bytes written, {sizes[2]} more would exceed max_bytes {sum(sizes) - 1}"
    assert end["message"] == told
    (record,) = caplog.records
    assert record.getMessage() == f"recording of {tmp_path / '1' / 'rank-0'} ended at step 2: {told}"


def test_a_large_step_is_severalfiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "BUNDLE", 2 * 24)
    with Notes(tmp_path) as recorder:
        train(recorder, 1, calls=6)
        train(recorder, 1, calls=5)
        train(recorder, 1, calls=2)
    files = files_of(tmp_path)
    assert {name: len(parts) for name, (_, parts) in files.items()} == {
        "000000000-0": 3, "000000000-1": 3, "000000001-0": 3, "000000001-1": 2, "000000002": 2, "end": 0,
    }  # fmt: skip
    assert [place[:2] for place in places(tmp_path)] == [(0, i) for i in range(6)] + [(1, i) for i in range(5)] + [
        (2, 0),
        (2, 1),
    ]


def test_the_budget_ends_a_step_in_the_middle_of_itsfiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "BUNDLE", 1)
    with Notes(tmp_path / "free") as free:
        train(free, 1, calls=3)
    with Notes(tmp_path / "held", max_bytes=free.written // 3 + 1) as recorder:
        train(recorder, 1, calls=3)
    assert list(files_of(tmp_path / "held")) == ["000000000-0", "end"]


# Failures


def test_the_first_failure_ends_the_recording_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Notes):
        def keep(self, name: str, array: Any) -> Any:
            if name == "ref_logp":
                raise KeyError("x" * 5000)
            return super().keep(name, array)

    with Failing(tmp_path) as recorder:
        train(recorder, 1)
        recorder.part(logp=np.zeros(1), ref_logp=np.zeros(1))
        assert not recorder.recording
        train(recorder, 2)
        recorder.fail(ValueError("a second"))
    assert [place[0] for place in places(tmp_path)] == [0]
    end = files_of(tmp_path)["end"][0]["end"]
    assert (end["reason"], end["step"]) == ("error", 1)
    assert end["message"].startswith("KeyError: 'xxx")
    assert len(end["message"]) == 2000
    (record,) = caplog.records
    assert record.getMessage().startswith(f"recording of {tmp_path / 'rank-0'} ended at step 1: KeyError('xxx")


def test_a_number_in_the_place_of_an_array_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, told in (("rollout", "; the recorder counts steps, rollouts and micro-batches"), ("advantages", "")):
        with Notes(tmp_path / name) as recorder:
            recorder.part(logp=np.zeros(1), **{name: 3})
        assert f"{name}: expected an array, got 3{told}" in caplog.records[-1].getMessage()


def test_a_guarded_method_returns_what_it_returns_or_nothing(tmp_path: Path) -> None:
    class Guarded(Notes):
        @guarded
        def halved(self, number: float, *, times: int = 1) -> float:
            """A method with a name and arguments."""
            return number / 2**times if times else 1 / 0

    recorder = Guarded(tmp_path)
    assert (recorder.halved(8.0), recorder.halved(8.0, times=2)) == (4.0, 2.0)
    assert Guarded.halved.__name__ == "halved"
    assert recorder.halved(8.0, times=0) is None
    assert recorder.ended == "error"


def test_a_folder_that_cannot_be_written_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "rank-0").write_text("no folder")
    with Notes(tmp_path) as recorder:
        train(recorder, 1)
    assert recorder.ended == "error"
    failed, unmarked = (record.getMessage() for record in caplog.records)
    assert failed.startswith(f"recording of {tmp_path / 'rank-0'} ended at step 0: ")
    assert unmarked.startswith(f"the end mark of {tmp_path / 'rank-0'} was not written: ")
    assert "Error(" in unmarked
    assert {record.name for record in caplog.records} == {"gspo.recording"}


def test_the_end_is_written_once(tmp_path: Path) -> None:
    recorder = Notes(tmp_path)
    train(recorder, 1)
    recorder.end("stopped", "by the test")
    recorder.end("again")
    recorder.close()
    mark = {"reason": "stopped", "step": 1, "message": "by the test"}
    assert files_of(tmp_path)["end"][0]["end"] == mark


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every: expected a positive integer, got 0"),
        ({"every": 1.5}, "every: expected a positive integer, got 1.5"),
        ({"max_bytes": 0}, "max_bytes: expected a positive integer, got 0"),
        ({"max_bytes": "1"}, "max_bytes: expected a positive integer, got '1'"),
    ],
)
def test_bad_options_are_refused_before_the_training(tmp_path: Path, options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Notes(tmp_path, **options)


def test_a_trace_of_the_same_rank_is_not_continued(tmp_path: Path) -> None:
    with Notes(tmp_path, rank=1) as recorder:
        train(recorder, 1)
    with pytest.raises(
        FileExistsError,
        match=f"^path: expected no trace of this rank yet, found one in {tmp_path / 'rank-1'}; .*first_step=",
    ):
        Notes(tmp_path, rank=1)
    assert Notes(tmp_path, rank=2, every=1, max_bytes=1).recording


def test_a_run_without_a_loss_is_an_end_mark(tmp_path: Path) -> None:
    with Notes(tmp_path) as recorder:
        recorder.advance()
    assert list(files_of(tmp_path)) == ["end"]
    assert files_of(tmp_path)["end"][0]["end"]["step"] == 0


def test_a_step_in_which_rollouts_begin_is_recorded_whole_or_not(tmp_path: Path) -> None:
    """Hunts half of the micro-batches of a step, where each of them is of a rollout of its own."""
    with Notes(tmp_path, every=2) as trace:
        for _ in range(4):
            for _ in range(2):
                trace.rollout(rewards=[1.0])
                trace.part(loss=1.0)
            trace.advance()
    losses = [place for place in places(tmp_path) if place[-1] is None]
    assert [(step, microbatch) for step, microbatch, *_ in losses] == [(s, m) for s in range(4) for m in range(2)]


def test_a_run_claims_an_objective_as_such_or_by_name(tmp_path: Path) -> None:
    """Hunts a recording that ends at its first step, since JSON has no objectives."""
    with Notes(tmp_path / "object", objective=gspo.Objective.gspo()) as trace:
        trace.step(objective=gspo.Objective.gspo(), loss=1.0)
    assert trace.ended == "closed"
    header, [(fields, _)] = files_of(tmp_path / "object")["000000000"]
    assert header["run"]["objective"] == gspo.Objective.gspo().to_dict()
    assert "objective" not in fields
    with Notes(tmp_path / "name") as trace:
        trace.step(objective="dapo", loss=1.0)
    assert files_of(tmp_path / "name")["000000000"][0]["run"]["objective"] == "dapo"
    with pytest.raises(ValueError, match="dtype: expected what JSON can hold, got <class"):
        Notes(tmp_path / "type", dtype=np.float32)


def test_rollouts_of_a_resumed_run_have_numbers_of_their_own(tmp_path: Path) -> None:
    """Hunts two rollouts under one number, of which an audit compares no advantages."""
    for folder, first in (("a", 0), ("b", 2)):
        with Notes(tmp_path / folder, first_step=first) as trace:
            for _ in range(2):
                trace.rollout(rewards=[1.0])
                trace.step(loss=1.0)
    rollouts = [place[2] for folder in ("a", "b") for place in places(tmp_path / folder) if place[-1] is None]
    assert rollouts == [0, 1, 2, 3]
