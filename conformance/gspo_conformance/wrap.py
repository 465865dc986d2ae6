"""A loss function as a target, in one line: `target = loss_target(my_loss, framework="torch")`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from inspect import Parameter, signature
from typing import Any, Literal

import numpy as np

from .connection import CALLED
from .target import Capabilities, Case, FunctionTarget
from .words import choices

FRAMEWORKS = ("torch", "jax", "mlx", "numpy")
MASKS = ("bool", "uint8", "int32", "int64", "float32", "float64")
SHAPES = ("response", "token")
INPUTS = ("logp", "old_logp", "advantages", "mask")
# What an argument is not called that is given each of these, in their order.
ELSEWHERE = {"first": "^old", "second": "", "third": "mask|^ref", "fourth": "adv"}
Loss = Callable[..., Any]


def loss_target(
    fn: Loss,
    framework: str = "torch",
    *,
    objective: Any = None,
    gradient: Literal["autodiff"] | Loss | None = "autodiff",
    clip: Sequence[float] | None = None,
    name: str | None = None,
    dtypes: Sequence[str] = ("float32",),
    mask_dtype: str = "bool",
    advantages: Literal["response", "token"] = "response",
) -> FunctionTarget:
    """A target from `fn(logp, old_logp, advantages, mask) -> loss` over `[B, T]` arrays of `framework`.

    It is put the vectors whose objective equals its own, clip range included, and which need nothing else.

    Args:
        fn: called with four arrays of `framework`, by position; returns the loss alone, a scalar that is minimised.
            It may call `backward` itself (PyTorch): the gradient is then what that left at `logp`.
        framework: "torch", "jax", "mlx" or "numpy".
        objective: what `fn` computes: None for the paper's GSPO, the name of a preset of
            `gspo_core.Objective` such as "grpo", such an objective, or its JSON as a mapping.
        gradient: "autodiff" differentiates `fn` by the framework (NumPy has none, so there the loss alone is
            checked); a function of the same arguments returns d loss / d logp; None checks the loss alone.
        clip: `(low, high)` in place of the objective's clip range.
        name: for reports; the name of `fn` by default.
        dtypes: add "float64" where `fn` computes in the precision of its inputs; skipped where MLX has no exact exp of it.
        mask_dtype: "bool", or what `fn` expects instead, such as "int64" or "float32".
        advantages: "response" passes `[B]`, "token" spreads them to `[B, T]`.
    """
    if not callable(fn):
        raise TypeError(f"fn: expected a function, got {type(fn).__name__}")
    _check_arguments("fn", fn)
    _one_of("framework", framework, FRAMEWORKS)
    _one_of("mask_dtype", mask_dtype, MASKS)
    _one_of("advantages", advantages, SHAPES)
    if not (gradient is None or gradient == "autodiff" or callable(gradient)):
        raise ValueError(f'gradient: expected "autodiff", a function or None, got {gradient!r}')
    if callable(gradient):
        _check_arguments("gradient", gradient)
    if isinstance(dtypes, str):
        raise TypeError(f"dtypes: expected a list of names, got {dtypes!r}")
    if framework == "numpy" and gradient == "autodiff":
        gradient = None
    own = objective_dict(objective, clip)
    capabilities = Capabilities(
        operations=frozenset({"policy_loss"}),
        dtypes=frozenset(dtypes),
        gradient=gradient is not None,
        objectives=_of_one_group(own),
        inputs=frozenset(INPUTS),
        parameters=frozenset({"objective"}),
    )
    module = import_module(f".frameworks.{framework}", __package__)

    def answer(case: Case) -> Mapping[str, Any]:
        return module.run(_alone(fn), _of_logp(gradient), _arrays(case, mask_dtype, advantages))

    version = {framework: str(module.VERSION)}
    return FunctionTarget(name or getattr(fn, "__name__", type(fn).__name__), answer, capabilities, version)


def _of_one_group(own: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """The objective, and the other one that it is where a call is one group, as it is for a function without groups."""
    aggregation = own["aggregation"]
    other = {"token_mean": "group_token_mean", "group_token_mean": "token_mean"}.get(aggregation["mode"])
    return (own, own | {"aggregation": aggregation | {"mode": other}}) if other else (own,)


def objective_dict(objective: Any = None, clip: Sequence[float] | None = None) -> dict[str, Any]:
    """An objective as JSON: None, the name of a preset, a `gspo_core.Objective` or a mapping; with another clip range."""
    from gspo_core import Objective

    if isinstance(objective, str):
        objective = _preset(Objective, objective)
    elif isinstance(objective, Mapping):
        objective = Objective.from_dict(dict(objective))
    elif objective is None:
        objective = Objective.gspo()
    if not isinstance(objective, Objective):
        raise TypeError(f"objective: expected a preset, a gspo_core.Objective or its JSON, got {objective!r}")
    if clip is None:
        return objective.to_dict()
    found = objective.to_dict()["surrogate"]
    if "low" not in found:
        raise ValueError(f"clip: the surrogate {found['kind']!r} has no clip range")
    if isinstance(clip, str) or not isinstance(clip, Sequence) or len(clip) != 2:
        raise TypeError(f"clip: expected two numbers (low, high), got {clip!r}")
    return objective.replace(surrogate=replace(objective.surrogate, low=clip[0], high=clip[1])).to_dict()


def _check_arguments(name: str, fn: Loss) -> None:
    """Whether `fn` takes the four arrays, the new log-probabilities first, as far as its signature says."""
    try:
        parameters = signature(fn)
    except (TypeError, ValueError):
        return
    order = f"{', '.join(INPUTS)}, by position"
    advice = "wrap it in a function of these four"
    try:
        parameters.bind(*INPUTS)
    except TypeError as error:
        raise TypeError(f"{name}: it is called with {order}, but takes {parameters}: {error}; {advice}") from error
    for place, taken in zip(ELSEWHERE, parameters.parameters.values(), strict=False):
        if taken.kind is Parameter.VAR_POSITIONAL:
            return
        if ELSEWHERE[place] and re.search(ELSEWHERE[place], taken.name):
            raise TypeError(f"{name}: it is called with {order}, but its {place} argument is {taken.name!r}; {advice}")


def _alone(fn: Loss) -> Loss:
    """`fn`, whose answer must be the loss and nothing beside it; where it raises, with what shapes it was called."""

    def loss(*arrays: Any) -> Any:
        try:
            found = fn(*arrays)
        except Exception as error:
            given = ", ".join(f"{str(array.dtype).rpartition('.')[2]} {list(array.shape)}" for array in arrays)
            error.add_note(f"{CALLED} {given}")
            raise
        if not hasattr(found, "__float__"):
            raise TypeError(f"the loss: expected it alone, got {type(found).__name__}; {_advice(found)}")
        shape = list(getattr(found, "shape", ()))
        if shape:
            advice = "`.squeeze()` makes it a number" if set(shape) == {1} else "is a mean missing?"
            raise ValueError(f"the loss: expected one number, got shape {shape}: {advice}")
        return found

    return loss


def _of_logp(gradient: Any) -> Any:
    """A gradient in closed form, whose answer must have the shape of `logp`."""
    if not callable(gradient):
        return gradient

    def slope(logp: Any, *rest: Any) -> Any:
        found: Any = gradient(logp, *rest)
        if found is None or np.shape(found) != tuple(logp.shape):
            got = "NoneType" if found is None else f"shape {list(np.shape(found))}"
            raise ValueError(f"the gradient: expected {list(logp.shape)}, a number per token, got {got}")
        return found

    return slope


def _advice(found: Any) -> str:
    """How the loss is got out of what came in its place."""
    if found is None:
        return "is a `return` missing?"
    if isinstance(found, Mapping):
        place = '["loss"]'
    else:
        place = ".loss" if hasattr(found, "loss") else "[0]"
    return f"take the loss out of it, as in `lambda *arrays: loss(*arrays){place}`"


def _one_of(name: str, value: Any, known: Sequence[str]) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    if value not in known:
        raise ValueError(f"{name}: {choices(value, known)}")


def _preset(objectives: Any, name: str) -> Any:
    presets = [word for word, made in vars(objectives).items() if isinstance(made, classmethod) and word[0] != "_"]
    presets = [word for word in presets if not word.startswith("from_")]
    if name not in presets:
        raise ValueError(f"objective: {choices(name, presets)}")
    return getattr(objectives, name)()


def _arrays(case: Case, mask_dtype: str, advantages: str) -> dict[str, Any]:
    arrays = {name: case.inputs[name] for name in INPUTS}
    if advantages == "token":
        arrays["advantages"] = np.repeat(arrays["advantages"][:, None], arrays["mask"].shape[1], axis=1)
    return arrays | {"mask": arrays["mask"].astype(mask_dtype)}
