"""`gspo_core` as a target on any framework: each operation of the suite is a call of the public function of that name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

import gspo_core as gspo
from gspo_core.arrays import namespace_of
from gspo_core.sequences import bind_sequences

from ..target import Capabilities, Case, Skip
from ..tensors import NumPyArray

Arrays = dict[str, Any]
Parameters = dict[str, Any]


LOSSES = Capabilities.everything(operations=("policy_loss", "step", "pipeline"))


class Framework(Protocol):
    """What this file needs of a framework; one small class each in `numpy.py`, `torch.py`, `jax.py`."""

    @property
    def version(self) -> Mapping[str, str]:
        """The framework's name and version."""
        ...

    def array(self, values: NumPyArray, storage: str | None) -> Any:
        """A native array; `storage` names a narrower dtype for floating values."""
        ...

    def numpy(self, values: Any) -> NumPyArray:
        """Back again."""
        ...

    def loss_and_gradient(self, objective: gspo.Objective, arguments: Arrays) -> tuple[gspo.PolicyLoss, Any]:
        """The loss with its metrics, and d loss / d logp."""
        ...


class CoreTarget:
    """`gspo_core` on one framework. `module` is where its functions come from: the core, or a backend that re-exports it.

    `traced`: values cannot be read while an answer is computed. What can be refused only by reading them (GSPO-NUM-6,
    GSPO-PACK-3), and is not refused as `sequences` are made, is skipped.
    """

    def __init__(
        self,
        name: str,
        framework: Framework,
        module: Any = gspo,
        capabilities: Capabilities | None = None,
        *,
        traced: bool = False,
    ) -> None:
        self.name = name
        self.framework = framework
        self.gspo = module
        self.traced = traced
        self.version = framework.version
        self.capabilities = capabilities or Capabilities.everything()

    def run(self, case: Case) -> dict[str, Any]:
        """The outputs of the case as NumPy arrays."""
        return {name: self.framework.numpy(value) for name, value in self.native(case).items()}

    def native(self, case: Case) -> dict[str, Any]:
        """The outputs of the case in the framework's arrays."""
        given = self.arguments(case)
        if self.traced and not all(map(_acceptable, case.inputs.get("parts", [case.inputs]))):
            raise Skip("values that have to be refused cannot be read here")
        return self.answer(case, given)

    def arguments(self, case: Case) -> Arrays | list[Arrays]:
        """The inputs of the case in the framework's arrays, its tokens as `sequences`; a list of them for a step."""
        if case.operation == "step":
            return [self._arguments(part, case) for part in case.inputs["parts"]]
        return self._arguments(case.inputs, case)

    def answer(self, case: Case, given: Arrays | list[Arrays]) -> dict[str, Any]:
        """What the case asks for, of arguments that are at hand."""
        parameters = dict(case.parameters)
        if isinstance(given, list):
            return self._step([dict(part) for part in given], parameters)
        special = getattr(self, f"_{case.operation}", None)
        if special is not None:
            return special(dict(given), parameters)
        return _named(case, getattr(self.gspo, case.operation)(**given, **parameters))

    def _arguments(self, inputs: Mapping[str, Any], case: Case) -> Arrays:
        arrays = {name: self.framework.array(value, _storage(name, case)) for name, value in inputs.items()}
        mask, offsets = arrays.pop("mask", None), arrays.pop("offsets", None)
        if offsets is not None:
            return arrays | {"sequences": self.gspo.Packed(offsets, mask=mask)}
        return arrays if mask is None else arrays | {"sequences": self.gspo.Padded(mask)}

    def _policy_loss(self, arrays: Arrays, parameters: Parameters) -> dict[str, Any]:
        objective = self.gspo.Objective.from_dict(parameters.pop("objective"))
        found, gradient = self.framework.loss_and_gradient(objective, arrays | parameters)
        metrics = {f"metrics.{name}": value for name, value in found.metrics.items()}
        return {"loss": found.loss, "gradient": gradient} | metrics

    def _step(self, parts: list[Arrays], parameters: Parameters) -> dict[str, Any]:
        found = [self._policy_loss(part, dict(parameters)) for part in parts]
        loss = sum((part["loss"] for part in found[1:]), found[0]["loss"])
        return {"loss": loss} | {f"gradient.{i}": part["gradient"] for i, part in enumerate(found)}

    def _pipeline(self, arrays: Arrays, parameters: Parameters) -> dict[str, Any]:
        settings = parameters.pop("advantages", {})
        rewards = arrays.pop("rewards")
        advantages = self.gspo.group_advantages(rewards, arrays["groups"], **settings)
        return {"advantages": advantages} | self._policy_loss(arrays | {"advantages": advantages}, parameters)

    def _normalize_rewards(self, arrays: Arrays, parameters: Parameters) -> dict[str, Any]:
        history, sizes = arrays.pop("history", None), arrays.pop("history_sizes", [])
        if parameters.get("method") == "running":
            running, start = self.gspo.RunningMoments(), 0
            for size in map(int, sizes):
                running, start = running.update(history[start : start + size]), start + size
            parameters["running"] = running.update(arrays["rewards"])
        return {"rewards": self.gspo.normalize_rewards(**arrays, **parameters)}

    def _ratio(self, arrays: Arrays, parameters: Parameters) -> dict[str, Any]:
        return {"ratio": ratio_function(self.gspo, parameters["kind"])(**arrays)}

    def _clipped_surrogate(self, arrays: Arrays, parameters: Parameters) -> dict[str, Any]:
        return {"value": self.gspo.clipped_surrogate(**arrays, clip=self.gspo.Clip(**parameters["clip"]))}

    def _aggregate(self, arrays: Arrays, parameters: Parameters) -> dict[str, Any]:
        mode = self.gspo.Aggregation(**parameters.pop("mode"))
        return {"value": self.gspo.aggregate(**arrays, mode=mode, **parameters)}


def ratio_function(module: Any, kind: str) -> Callable[..., Any]:
    """The core's function for a kind of ratio; the product, which it has no function for, is put together here."""
    if kind == "product":
        return lambda logp, old_logp, sequences: _product_ratio(module, logp, old_logp, sequences)
    return getattr(module, f"{kind}_ratio")


def _product_ratio(module: Any, logp: Any, old_logp: Any, sequences: Any) -> Any:
    log = module.token_log_ratio(logp, old_logp, sequences)
    return namespace_of(log).exp(bind_sequences(sequences, tuple(log.shape)).sum_tokens(log))


OUTPUTS = {"informative_groups": ("keep",), "gae_advantages": ("advantages", "returns")}


def _named(case: Case, found: Any) -> dict[str, Any]:
    names = OUTPUTS.get(case.operation)
    if names is not None and len(names) > 1:
        return dict(zip(names, found, strict=True))
    return {case.outputs[0]: found}


def _storage(name: str, case: Case) -> str | None:
    return case.input_dtype if name.endswith("logp") else None


def cuts(offsets: NumPyArray, tokens: int) -> bool:
    """Whether the offsets rise from 0 to an end within the tokens."""
    return bool(offsets[0] == 0 and (np.diff(offsets) >= 0).all() and offsets[-1] <= tokens)


def _acceptable(inputs: Mapping[str, Any]) -> bool:
    """Whether what is counted is finite, and the offsets, if any, rise from 0 to an end within the tokens."""
    offsets, mask = inputs.get("offsets"), inputs.get("mask")
    tokens = max((array.shape[0] for array in inputs.values() if array.ndim), default=0)
    if offsets is not None and not cuts(offsets, tokens):
        return False
    counted = mask != 0 if mask is not None else None if offsets is None else np.arange(tokens) < offsets[-1]
    floats = [array for array in inputs.values() if array.dtype.kind == "f"]
    read = [flags for flags in (counted, inputs.get("valid")) if flags is not None]
    kept = [next((array[flags] for flags in read if flags.shape == array.shape), array) for array in floats]
    return all(np.isfinite(array).all() for array in kept)
