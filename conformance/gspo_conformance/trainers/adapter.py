"""What the adapters of all trainers share: which settings a case needs, and how an answer leaves a framework.

An adapter calls the trainer's real functions. It may stand in for the trainer's surroundings (a
configuration object, a process group), never for its mathematics.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np

from ..target import Capabilities, Case, Skip
from ..tensors import NumPyArray
from .dialect import Dialect, Inexpressible, is_gspo, nearest

Settings = dict[str, Any]
Loss = Callable[[Settings, Case], Mapping[str, Any]]
Operation = Callable[[Case], Mapping[str, Any]]


@dataclass(frozen=True)
class TrainerTarget:
    """The trainer's loss under the settings that its dialect has for the objective of each case.

    `loss(settings, case)` returns the outputs of a policy loss; `operations` the other operations
    that the trainer has. `default`: GSPO as the documentation switches it on, asked only for GSPO.
    """

    version: Mapping[str, str]
    dialect: Dialect
    release: str
    loss: Loss
    operations: Mapping[str, Operation]
    capabilities: Capabilities
    default: bool = False

    @property
    def name(self) -> str:
        """That of the trainer, and of the variant."""
        return self.dialect.name + ":default" * self.default

    def __post_init__(self) -> None:
        """A release or a commit that the adapter was not written for says so in every report."""
        other = os.environ.get("GSPO_OTHER")
        if other or self.release not in self.dialect.versions:
            name, *_ = self.version
            found = {name: other or self.version[name], "adapter written for": ", ".join(self.dialect.versions)}
            object.__setattr__(self, "version", {**self.version, **found})

    def as_documented(self, **changes: Any) -> TrainerTarget:
        """The target `NAME:default`, asked for the policy loss of GSPO alone; `changes` are those of its capabilities."""
        alone = {"operations": frozenset({"policy_loss"}), "parameters": frozenset({"objective"}), **changes}
        capabilities = replace(self.capabilities, **alone)
        return replace(self, operations={}, capabilities=capabilities, default=True)

    def run(self, case: Case) -> Mapping[str, Any]:
        """The outputs of the trainer's own code."""
        if case.operation == "step":
            return self._step(case)
        if case.operation == "pipeline":
            return self._pipeline(case)
        if case.operation != "policy_loss":
            return self.operations[case.operation](case)
        return self.loss(self.settings(case), case)

    def _step(self, case: Case) -> Mapping[str, Any]:
        """Every part as a micro-batch of its own, with the count of the whole step: losses add."""
        settings = self.settings(case)
        return added([self.loss(settings, part) for part in parts_of(case)])

    def _pipeline(self, case: Case) -> Mapping[str, Any]:
        """The trainer's advantages from rewards, then its loss of them."""
        parameters = dict(case.parameters)
        rewarded = replace(case, operation="group_advantages", parameters=parameters.pop("advantages"))
        advantages = self.operations["group_advantages"](rewarded)["advantages"]
        inputs = {name: value for name, value in case.inputs.items() if name != "rewards"}
        inputs["advantages"] = np.asarray(advantages).astype(case.dtype)
        learnt = replace(case, operation="policy_loss", parameters=parameters, inputs=inputs)
        return {"advantages": advantages, **self.loss(self.settings(learnt), learnt)}

    def settings(self, case: Case) -> Settings:
        """The trainer's keys for this case; a skip with the reason where it has none."""
        objective = case.objective or {}
        if self.default and not is_gspo(objective):
            raise Skip("the default configuration is asked for GSPO alone")
        release = nearest(self.release, self.dialect.versions)
        try:
            if self.default:
                return self.dialect.gspo(objective["surrogate"], release)
            return self.dialect.write(objective, release)
        except Inexpressible as reason:
            raise Skip(str(reason)) from None


class PaddedBatch(dict[str, Any]):
    """What a loss asks of a TensorDict of nested tensors, for tensors that are padded already."""

    batch_size: tuple[int, ...] = ()

    def select(self, *names: str) -> PaddedBatch:
        """These entries."""
        return PaddedBatch({name: self[name] for name in names})

    def to_padded_tensor(self) -> PaddedBatch:
        """Itself."""
        return self


def checkout() -> tuple[str, str]:
    """The folder of the trainer's own code, which comes first on the path, and its commit."""
    source = os.environ["GSPO_SOURCE"]
    sys.path.insert(0, source)
    return source, os.environ["GSPO_VERSION"]


def offered(operations: Iterable[str], inputs: str, parameters: str, **options: Any) -> Capabilities:
    """What a trainer has beside its policy loss; `inputs` and `parameters` are names between blanks."""
    return Capabilities(
        operations=frozenset({"policy_loss", *operations}),
        gradient=True,
        inputs=frozenset(inputs.split()),
        parameters=frozenset(parameters.split()),
        **options,
    )


def overlaid(made: Any, settings: Mapping[str, Any], what: str) -> Any:
    """`made` with these settings over it, a dot leading inwards; a key that it does not have is an error."""
    for key, value in settings.items():
        *path, last = key.split(".")
        place = reduce(getattr, path, made)
        if not hasattr(place, last):
            raise KeyError(f"{what} has no {key}")
        setattr(place, last, value)
    return made


def parts_of(case: Case) -> list[Case]:
    """The micro-batches of a step, each a policy loss."""
    return [replace(case, operation="policy_loss", inputs=part) for part in case.inputs["parts"]]


def added(outputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A step whose micro-batches add up."""
    gradients = {f"gradient.{i}": one["gradient"] for i, one in enumerate(outputs)}
    return {"loss": sum(one["loss"] for one in outputs), **gradients}


def per_token(case: Case) -> NumPyArray:
    """Advantages in the shape of the tokens, 0 where nothing is counted, as trainers hand them on."""
    advantages, logp = case.inputs["advantages"], case.inputs["logp"]
    if advantages.shape != logp.shape:
        if "offsets" in case.inputs:
            raise Skip("packed sequences are laid out by the trainer itself")
        advantages = np.broadcast_to(advantages[:, None], logp.shape)
    return np.where(case.inputs["mask"] != 0, advantages, 0).astype(case.dtype)


def tensor(values: NumPyArray, dtype: str | None = None) -> Any:
    """A torch tensor that shares nothing with the case."""
    import torch

    found = torch.tensor(np.ascontiguousarray(values))
    return found if dtype is None else found.to(getattr(torch, dtype))


def torch_kl(case: Case, compute: Callable[[Any, Any], Any]) -> dict[str, Any]:
    """`compute(logp, ref_logp)` by the trainer: the output `value` as a NumPy array."""
    import torch

    logp, ref = (tensor(case.inputs[name], case.input_dtype) for name in ("logp", "ref_logp"))
    return {"value": compute(logp, ref).to(getattr(torch, case.dtype)).numpy()}


def torch_loss(case: Case, loss: Callable[[Any], Any]) -> dict[str, Any]:
    """`loss(logp)` by the trainer, then its gradient by autograd: the outputs `loss` and `gradient` as NumPy arrays."""
    import torch

    logp = tensor(case.inputs["logp"], case.input_dtype).requires_grad_()
    value = loss(logp)
    (gradient,) = torch.autograd.grad(value, logp, allow_unused=True) if value.requires_grad else (None,)
    gradient = torch.zeros_like(logp) if gradient is None else gradient
    kind = getattr(torch, case.dtype)
    return {"loss": value.detach().to(kind).numpy(), "gradient": gradient.to(kind).numpy()}


def mlx_loss(case: Case, loss: Callable[[Any], Any]) -> dict[str, Any]:
    """`loss(logp)` by the trainer, then its gradient by `mlx.core.value_and_grad`: the outputs `loss` and `gradient` as NumPy arrays."""
    import mlx.core as mx

    from ..frameworks.mlx import array, numpy

    found = mx.value_and_grad(loss)(array(case.inputs["logp"], case.input_dtype))
    return {name: numpy(one).astype(case.dtype) for name, one in zip(("loss", "gradient"), found, strict=True)}
