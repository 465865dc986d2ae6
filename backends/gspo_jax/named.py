"""Functions of the core that sort by group or gather by response, on meshes with explicit axes too."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import jax
from jax.sharding import PartitionSpec as P

import gspo_core

from .mesh import run_automatically

Function = TypeVar("Function", bound=Callable[..., Any])


def _automatic(function: Function, spec: Any = None) -> Function:
    @wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        arrays = (leaf for leaf in jax.tree.leaves((arguments, options)) if isinstance(leaf, jax.Array))
        first = next(arrays, None)
        if first is None:
            return function(*arguments, **options)
        return run_automatically(lambda given: function(*given[0], **given[1]), (arguments, options), first, spec)

    return run  # pyright: ignore[reportReturnType]


gspo_loss = _automatic(gspo_core.gspo_loss, P())
gspo_token_loss = _automatic(gspo_core.gspo_token_loss, P())
grpo_loss = _automatic(gspo_core.grpo_loss, P())
ppo_loss = _automatic(gspo_core.ppo_loss, P())
group_advantages = _automatic(gspo_core.group_advantages)
leave_one_out_advantages = _automatic(gspo_core.leave_one_out_advantages)
informative_groups = _automatic(gspo_core.informative_groups)
