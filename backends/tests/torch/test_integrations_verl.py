"""verl's real registry and its own GSPO: `gspo_core` is found without a line of code and gives the same numbers."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch

pytestmark = [
    pytest.mark.skipif(find_spec("verl") is None, reason="verl is not installed (pip install verl==0.9.1)"),
    pytest.mark.filterwarnings("ignore"),
]

LENGTHS = torch.tensor([3, 3, 5, 9, 10, 11])
SHIFTS = torch.tensor([0.02, 0.35, -0.4, 0.45, -0.35, -0.03], dtype=torch.float64)


def _call(
    name: str, weights: torch.Tensor | None, info: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """verl's function of that name, called as verl's workers call it; two responses on either side are clipped."""
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.workers.config import ActorConfig

    draw = torch.Generator().manual_seed(0)
    mask = torch.arange(11) < LENGTHS[:, None]
    old = -torch.rand(6, 11, generator=draw, dtype=torch.float64)
    new = (old + 0.1 * torch.randn(6, 11, generator=draw, dtype=torch.float64) + SHIFTS[:, None]).requires_grad_()
    advantages = torch.tensor([1.2, 0.7, -0.9, -1.1, 0.4, 0.0], dtype=torch.float64)
    config = ActorConfig(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio_low=0.2,
        clip_ratio_high=0.3,
        loss_agg_mode="seq-mean-token-mean",
    )
    config.global_batch_info.update(info)
    loss, metrics = get_policy_loss_fn(name)(
        old_log_prob=old,
        log_prob=new,
        advantages=advantages[:, None].expand(6, 11) * mask,
        response_mask=mask,
        loss_agg_mode=config.loss_agg_mode,
        config=config,
        rollout_is_weights=weights,
    )
    loss -= 0.25  # as verl subtracts the entropy term: in place
    loss.backward()
    return loss.detach(), new.grad, metrics


@pytest.mark.parametrize("info", [{}, {"dp_size": 2, "batch_num_tokens": 100, "global_batch_size": 12}])
@pytest.mark.parametrize("weighted", [False, True])
def test_gspo_core_equals_verls_gspo(info: dict[str, Any], weighted: bool) -> None:
    """Some weights are 0, which clips nothing and unclips nothing."""
    weights = torch.rand(6, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64) if weighted else None
    weights = None if weights is None else torch.where(weights < 0.4, 0.0, weights)
    theirs, ours = _call("gspo", weights, info), _call("gspo_core", weights, info)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-13, atol=1e-16)
    for name, value in theirs[2].items():
        assert ours[2][name] == pytest.approx(value, rel=1e-6)
    assert 0 < ours[2]["actor/pg_clipfrac"] < 1


def test_an_objective_of_ones_own_is_found_by_its_name() -> None:
    from verl.trainer.ppo.core_algos import get_policy_loss_fn

    from gspo_torch import Objective
    from gspo_torch.integrations import verl

    registered = verl.register(Objective.luspo(), name="luspo_core")
    assert get_policy_loss_fn("luspo_core") is registered


def test_the_example_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import runpy
    import sys
    from pathlib import Path

    monkeypatch.setattr(sys, "argv", ["verl_loss.py"])
    runpy.run_path(str(Path(__file__).parents[3] / "examples" / "verl_loss.py"), run_name="__main__")
    ours, theirs, token_mean = capsys.readouterr().out.splitlines()[-3:]
    assert ours.split("loss")[1] == theirs.split("loss")[1] != token_mean.split("loss")[1]
