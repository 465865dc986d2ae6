"""What a case demands of a trainer beside its settings; a skip with the reason where the trainer does not have it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from ..target import Case, Skip
from ..tensors import NumPyArray
from .adapter import Settings, tensor


def had(settings: Settings, has: Collection[str], without: Mapping[str, Any], trainer: str) -> Settings:
    """The settings that this release has; a skip where another one is to be something else than what holds `without` it."""
    for name, value in settings.items():
        if name not in has and (name not in without or without[name] != value):
            raise Skip(f"{trainer} has no setting {name}")
    return {name: value for name, value in settings.items() if name in has}


def refused(error: Exception, keys: Mapping[str, str], settings: Settings, trainer: str) -> Exception:
    """A skip where a release does not know the value of one of the `keys`, which it says with these words before a colon; else the error."""
    key = keys.get(str(error).partition(":")[0])
    return Skip(f"{trainer} has no {key} {settings[key]}") if key else error


def count(case: Case, trainer: str) -> Any:
    """The count of the whole step where a case gives one; a skip where its objective needs one and it gives none."""
    given = case.parameters.get("normalizer")
    if given is None and (case.objective or {}).get("aggregation", {}).get("count") == "given":
        raise Skip(f"{trainer} always has a count to divide by")
    return given


def single(case: Case, trainer: str) -> None:
    """A skip in float64."""
    if case.dtype != "float32":
        raise Skip(f"{trainer} computes these in float32 whatever comes in")


def center_and_scale(case: Case, trainer: str, own: Collection[tuple[str, str]]) -> tuple[str, str]:
    """What the advantages of a group subtract and divide by; a skip where the trainer does not do both."""
    center, scale = case.parameters.get("center", "mean"), case.parameters.get("scale", "std")
    if (center, scale) not in own:
        raise Skip(f"{trainer} has no advantages with center {center} and scale {scale}")
    return center, scale


def estimator(case: Case, trainer: str, own: Collection[str]) -> str:
    """The estimator of a KL term; a skip where the trainer does not have it."""
    estimator = case.parameters["estimator"]
    if estimator not in own:
        raise Skip(f"{trainer} has no estimator {estimator}")
    return str(estimator)


def whitening(case: Case, trainer: str) -> None:
    """A skip where another standard deviation is asked for than that of ddof 1 with 1e-8 under the root."""
    if case.parameters.get("ddof", 1) != 1 or case.parameters.get("eps", 1e-8) != 1e-8:
        raise Skip(f"{trainer} whitens with ddof 1 and 1e-8 added to the variance")


def std(case: Case, trainer: str, eps: float, ddof: int = 1) -> None:
    """A skip where another standard deviation is asked for than that of `ddof` plus `eps`, and a group has two rewards.

    Where none has, advantages are 0 whatever the divisor.
    """
    asked = {"ddof": 1, "eps": 1e-6, "eps_placement": "std"} | dict(case.parameters)
    rewards, groups = case.inputs["rewards"], case.inputs["groups"]
    differ = any(np.ptp(rewards[groups == group]) > 0 for group in np.unique(groups))
    if differ and (asked["ddof"], asked["eps"], asked["eps_placement"]) != (ddof, eps, "std"):
        raise Skip(f"{trainer}'s standard deviation has ddof {ddof}, and {eps:g} is added to it")


def prompts(case: Case) -> tuple[NumPyArray, int]:
    """The rows in the order of their prompts, and how many responses each has: a skip where these differ; 1 without prompts."""
    if "groups" not in case.inputs:
        return np.arange(case.inputs["rewards"].shape[0]), 1
    groups = case.inputs["groups"]
    _, sizes = np.unique(groups, return_counts=True)
    if len(set(sizes)) > 1:
        raise Skip("every prompt has the same number of responses")
    return np.argsort(groups, kind="stable"), int(sizes[0])


def by_prompt(case: Case, compute: Callable[[Any, int], Any]) -> NumPyArray:
    """`compute(rewards, size)` of the rewards prompt after prompt, as a tensor, in the order of the case again."""
    order, size = prompts(case)
    found = np.empty_like(case.inputs["rewards"])
    found[order] = compute(tensor(case.inputs["rewards"][order]), size).numpy()
    return found
