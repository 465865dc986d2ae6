"""`GSPOLoss` is `policy_loss` with its objective kept."""

from __future__ import annotations

import copy

import pytest
import torch

import gspo_torch as gspo
from gspo_core.tests.batches import Batch

from .test_native import tensor


@pytest.mark.parametrize("name", ["gspo", "decoupled", "dapo"])
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_it_is_policy_loss(name: str, layout: str) -> None:
    objective = getattr(gspo.Objective, name)()
    arguments = getattr(Batch(), layout)(tensor) | {"normalizer": 7.0}
    expected = gspo.policy_loss(objective, **arguments)
    found = gspo.GSPOLoss(objective)(**arguments)
    assert found.loss == expected.loss
    assert found.metrics == expected.metrics


def test_the_paper_is_the_default() -> None:
    assert gspo.GSPOLoss().objective == gspo.Objective.gspo()
    assert gspo.GSPOLoss(clip=gspo.Clip(0.1, 0.2)).objective == gspo.Objective.gspo(gspo.Clip(0.1, 0.2))
    arguments = Batch().padded(tensor)
    positional = [arguments[name] for name in ("logp", "old_logp", "advantages", "sequences")]
    assert gspo.GSPOLoss()(*positional).loss == gspo.gspo_loss(*positional).loss


def test_it_has_no_state() -> None:
    module = gspo.GSPOLoss()
    assert not module.state_dict()
    assert not list(module.parameters())
    assert copy.deepcopy(module).objective == module.objective
    assert module.half().train().to("meta").objective == gspo.Objective.gspo()


def test_its_name_says_the_objective() -> None:
    assert repr(gspo.GSPOLoss(gspo.Objective.luspo())) == (
        "GSPOLoss(ratio='sequence', surrogate=Clip(low=0.0003, high=0.0004, dual=None), "
        "aggregation='sequence_mean_token_sum')"
    )
    penalised = gspo.Objective.gspo().replace(penalty=gspo.Penalty("k3", 0.1))
    assert "penalty=Penalty(estimator='k3', coefficient=0.1" in repr(gspo.GSPOLoss(penalised))


def test_two_clip_ranges_are_an_error() -> None:
    with pytest.raises(ValueError, match="clip: expected None, since the objective has its own, got both"):
        gspo.GSPOLoss(gspo.Objective.gspo(), clip=gspo.Clip(0.1, 0.1))
    with pytest.raises(TypeError, match="objective: expected an Objective, got str"):
        gspo.GSPOLoss("gspo")


def test_in_a_sequential_training_step() -> None:
    torch.manual_seed(0)
    arguments = Batch(garbage=-1.0).padded(tensor)
    shift = torch.nn.Parameter(torch.zeros_like(arguments["logp"]))
    optimizer = torch.optim.SGD([shift], lr=0.5)
    losses = []
    for _ in range(3):
        out = gspo.GSPOLoss(clip=gspo.Clip(0.5, 0.5))(
            arguments["old_logp"] + shift, arguments["old_logp"], arguments["advantages"], arguments["sequences"]
        )
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(out.loss.item())
    assert losses[0] > losses[1] > losses[2]
