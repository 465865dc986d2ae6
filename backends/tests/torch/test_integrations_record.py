"""The recorders inside real TRL and verl: what they write is what the trainer computed, and it audits clean."""

from __future__ import annotations

import importlib.util
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gspo_conformance.audit import read_trace
from gspo_torch.integrations import trl_record

pytestmark = pytest.mark.filterwarnings("ignore")
MAKE = Path(__file__).parents[3] / "conformance/tests/traces/make_trl.py"


@pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed (pip install trl==1.16.0)")
def test_a_run_of_trl_is_recorded_as_the_shipped_trace_was(tmp_path: Path) -> None:
    found = importlib.util.spec_from_file_location("make_trl", MAKE)
    assert found is not None
    assert found.loader is not None
    made = importlib.util.module_from_spec(found)
    found.loader.exec_module(made)
    made.main(tmp_path)
    shipped = {path.name for path in MAKE.with_name("trl").rglob("*.safetensors")}
    assert {path.name for path in tmp_path.rglob("*.safetensors")} == shipped


@pytest.mark.skipif(find_spec("verl") is None, reason="verl is not installed (pip install verl==0.9.1)")
def test_verls_own_loss_is_recorded_and_returned(tmp_path: Path) -> None:
    from verl.trainer.ppo import core_algos
    from verl.workers.config import ActorConfig

    from gspo_torch.integrations import verl_record

    before = core_algos.get_policy_loss_fn("gspo")
    recorder = verl_record.record("gspo", tmp_path)
    config = ActorConfig(
        strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, clip_ratio_low=0.2, clip_ratio_high=0.3
    )
    config.global_batch_info.update(dp_size=2, batch_num_tokens=100, global_batch_size=12)
    logp = torch.zeros(2, 3, requires_grad=True)
    arguments: dict[str, Any] = {
        "old_log_prob": torch.full((2, 3), -0.1),
        "log_prob": logp,
        "advantages": torch.tensor([[1.0] * 3, [-0.5] * 3]),
        "response_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
        "loss_agg_mode": "seq-mean-token-mean",
        "config": config,
    }
    try:
        wrapped = core_algos.get_policy_loss_fn("gspo")
        loss, metrics = wrapped(**arguments)
        torch.optim.SGD([logp], lr=0.1).step()
    finally:
        core_algos.POLICY_LOSS_REGISTRY["gspo"] = before
        recorder.close()
    expected, _ = before(**arguments)
    assert loss.item() == expected.item()
    assert recorder.step_index == 1
    assert (tmp_path / "rank-0/000000000.safetensors").exists()
    assert metrics["actor/pg_clipfrac"] == 0
    settings = recorder.run["trainer"]["settings"]
    assert settings["actor_rollout_ref.actor.loss_agg_mode"] == "seq-mean-token-mean"
    assert settings["actor_rollout_ref.actor.clip_ratio_high"] == 0.3


@pytest.mark.parametrize("mode", [None, "token-mean"])
def test_a_mode_that_the_loop_leaves_to_verls_function_is_that_functions(mode: str | None, tmp_path: Path) -> None:
    """Hunts "token-mean", verl's default in its configuration, said of a function with a default of its own."""
    from gspo_torch.integrations.verl_record import VerlRecorder

    def theirs(
        old: Any, new: Any, a: Any, m: Any, loss_agg_mode: str = "seq-mean-token-sum-norm", config: Any = None
    ) -> Any:
        return (new * 0).sum(), {}

    recorder = VerlRecorder(tmp_path, trainer={"name": "verl", "settings": {}})
    loss = recorder.wrapped(theirs)
    logp = torch.zeros(2, 3, requires_grad=True)
    loss(logp.detach(), logp, torch.ones(2, 3), torch.ones(2, 3), **({} if mode is None else {"loss_agg_mode": mode}))
    recorder.close()
    settings = recorder.run["trainer"]["settings"]
    assert settings["actor_rollout_ref.actor.loss_agg_mode"] == (mode or "seq-mean-token-sum-norm")
    assert settings["actor_rollout_ref.actor.loss_scale_factor"] == 3
    assert recorder.ended == "closed"


@pytest.mark.parametrize(
    ("name", "version", "expected"),
    [
        ("sapo", "0.9.1", 8.0),
        ("gspo", "0.9.0", 8.0),
        ("gspo", "0.9.1", 40.0),
        ("vanilla", "0.9.1", 40.0),
        ("geo_mean", "0.9.1", None),
    ],
)
def test_what_a_loss_divides_by_that_takes_no_notice_of_the_mode(
    name: str, version: str, expected: float | None, tmp_path: Path
) -> None:
    """Hunts a difference of verl's own sapo: it divides by responses, whatever `loss_agg_mode` says."""
    from gspo_torch.integrations.verl_record import VerlRecorder

    settings = {"actor_rollout_ref.actor.policy_loss.loss_mode": name}
    recorder = VerlRecorder(tmp_path, trainer={"name": "verl", "version": version, "settings": settings})
    loss = recorder.wrapped(lambda old, new, a, m, loss_agg_mode="token-mean", config=None: ((new * 0).sum(), {}))
    config = SimpleNamespace(global_batch_info={"dp_size": 1, "batch_num_tokens": 40, "global_batch_size": 8})
    logp = torch.zeros(2, 3, requires_grad=True)
    loss(torch.zeros(2, 3), logp, torch.ones(2, 3), torch.ones(2, 3), loss_agg_mode="token-mean", config=config)
    recorder.close()
    assert read_trace(tmp_path).step(0).parts[0].normalizer == expected


def test_a_gradient_with_verls_kl_term_in_it_is_left_out(tmp_path: Path) -> None:
    """Hunts `gradient-differs` of a right run: the KL term is added behind the function that is recorded."""
    from gspo_torch.integrations.verl_record import VerlRecorder

    recorder = VerlRecorder(tmp_path, trainer={"name": "verl", "settings": {}}, gradient=True)
    loss = recorder.wrapped(lambda old, new, a, m, config=None: (new.sum(), {}))
    for with_kl in (True, False):
        logp = torch.zeros(2, 3, requires_grad=True)
        config = SimpleNamespace(use_kl_loss=with_kl)
        found, _ = loss(torch.zeros(2, 3), logp, torch.ones(2, 3), torch.ones(2, 3), config=config)
        (found + logp.square().sum() * with_kl).backward()
    recorder.close()
    left, right = read_trace(tmp_path).step(0).parts
    assert right.names - left.names == {"gradient"}


def test_the_first_step_of_a_rollout_of_verl_is_known_by_their_number(tmp_path: Path) -> None:
    """Hunts log-probabilities of two temperatures that agree, since nobody says where the policies are the same."""
    from gspo_torch.integrations.verl_record import VerlRecorder

    recorder = VerlRecorder(tmp_path, trainer={"name": "verl", "settings": {}}, steps_per_rollout=2)
    loss = recorder.wrapped(lambda old, new, a, m, config=None: (new.sum(), {}))
    for _ in range(5):
        loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 3), torch.ones(2, 3))
        recorder.advance()
    recorder.close()
    steps = [read_trace(tmp_path).step(index) for index in range(5)]
    assert [(step.rollout, step.minibatch) for step in steps] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    with pytest.raises(ValueError, match="steps_per_rollout: expected a positive integer"):
        VerlRecorder(tmp_path / "other", steps_per_rollout=0.5)  # pyright: ignore[reportArgumentType]


def _trainer(**settings: Any) -> Any:
    """What the recorder asks of TRL's trainer."""
    args = SimpleNamespace(off_policy_mask_threshold=None)
    known: dict[str, Any] = {"num_generations": 2, "reward_weights": torch.ones(2), "args": args, "loss_type": "grpo"}
    known |= {"accelerator": SimpleNamespace(process_index=0), "current_gradient_accumulation_steps": 1}
    known |= {"_rewards_by_function": torch.tensor([[1.0, 0.0]] * 4), "_scored": torch.zeros(4, 3, requires_grad=True)}
    return SimpleNamespace(**(known | settings))


def test_rewards_that_are_normalised_one_by_one_are_not_recorded_as_one(tmp_path: Path) -> None:
    """Hunts advantages that differ from those of the weighted sum, which TRL does not normalise there."""
    for way, names in (
        ("sum_then_normalize", {"trace_groups", "trace_rewards"}),
        ("normalize_then_sum", {"trace_groups"}),
    ):
        recorder = trl_record._TrlRecorder(tmp_path / way)
        found = {"advantages": torch.zeros(4)}
        recorder.generated(_trainer(multi_objective_aggregation=way), found)
        assert set(found) - {"advantages"} == names
        assert not recorder.ended


def test_a_loss_without_the_tokens_of_low_entropy_is_left_out(tmp_path: Path) -> None:
    recorder = trl_record._TrlRecorder(tmp_path, gradient=True)
    inputs = {"completion_mask": torch.ones(4, 3), "advantages": torch.ones(4)}
    metrics = {"clip_ratio/low_mean": 0.0, "clip_ratio/low_min": 0.0, "entropy": 1.0}
    for quantile in (0.5, 1.0):
        trainer = _trainer(top_entropy_quantile=quantile)
        recorder.computed(trainer, inputs, torch.tensor(0.5), metrics)
        trainer._scored.sum().backward()
    recorder.close()
    left, right = read_trace(tmp_path).step(0).parts
    assert (left.loss, right.loss) == (None, 0.5)
    assert right.names - left.names == {"gradient"}
    assert right.metrics == {"clip_ratio/low_mean": 0.0}
