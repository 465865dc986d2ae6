"""`linear_policy_loss` and `linear_token_logps` inside what `torch.compile` compiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gspo_torch as gspo

from .heads import distance, gradients
from .test_linear_loss import WIDE, problem


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("function", ["loss", "logps"])
def test_a_compiled_caller(function: str) -> None:
    """The call leaves the caller's graph, and the result is the same."""
    case = problem()
    parts = case.leaves(case.clean)

    def step(*leaf: Tensor) -> Tensor:
        if function == "loss":
            return case.loss(WIDE, list(leaf), chunk_size=4).loss * 2.0
        return gspo.linear_token_logps(leaf[0], leaf[1], case.ids, bias=leaf[2], chunk_size=4).sum() * 2.0

    compiled = torch.compile(step, backend="aot_eager")
    assert distance(gradients(compiled(*parts), parts), gradients(step(*parts), parts)) < 1e-12


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("function", ["loss", "logps"])
def test_a_backward_pass_inside_a_compiled_step_is_not_traced(function: str) -> None:
    """Loops over chunks would be compiled anew for every number of tokens."""
    case, traced = problem(), []
    parts = case.leaves(case.clean)

    def step(*leaf: Tensor) -> None:
        if function == "loss":
            case.loss(WIDE, list(leaf), chunk_size=4).loss.backward()
        else:
            gspo.linear_token_logps(leaf[0], leaf[1], case.ids, bias=leaf[2], chunk_size=4).sum().backward()

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        traced.extend(node.stack_trace or "" for node in graph.graph.nodes)
        return graph

    torch.compile(step, backend=backend)(*parts)
    assert not any("gspo_torch" in where for where in traced)
