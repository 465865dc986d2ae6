"""The recorders inside real TRL and verl: what they write is what the trainer computed, and it audits clean."""

from __future__ import annotations

import importlib.util
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

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
