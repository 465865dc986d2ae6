"""The whole reference: every operation of the suite, put together from its stages."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from .advantages import AdvantageReference
from .reference import LossReference
from .returns import ReturnReference
from .tape import stop

# Two operations have the name of a stage.
_METHODS = {"ratio": "ratio_answer", "aggregate": "aggregate_answer"}


class Reference(LossReference, AdvantageReference, ReturnReference):
    """Right on every case; a mutant is a subclass."""

    def answer(self) -> dict[str, Any]:
        """The wanted outputs, in the dtype of the case."""
        with np.errstate(all="ignore"):
            found = getattr(self, _METHODS.get(self.case.operation, self.case.operation))()
            return {name: self.stored(found[name]) for name in self.case.outputs}

    def stored(self, value: Any) -> Any:
        """An output as the target returns it."""
        array = np.asarray(stop(value))
        return array if array.dtype == bool else array.astype(self.case.dtype)

    def pipeline(self) -> dict[str, Any]:
        """From rewards to the gradient."""
        arrays, parameters = dict(self.case.inputs), dict(self.case.parameters)
        advantages = self.advantages_of(
            self.inputs(dict(arrays)), self.settings(dict(parameters.pop("advantages", {})))
        )
        stored = arrays | {"advantages": advantages}
        case = replace(self.case, operation="policy_loss", inputs=stored, parameters=parameters)
        rest = type(self)(case)
        rest.computed = True
        return {"advantages": advantages} | rest.policy_loss()

    def ratio_answer(self) -> dict[str, Any]:
        """x per token, 1 at uncounted ones, or per response."""
        self.objective = {"log_ratio_cap": None, "ratio": self.case.parameters["kind"]}
        self.read_tokens(self.inputs(dict(self.case.inputs)))
        ratio = np.asarray(self.ratio(stop(self.unit_log_ratio())))
        if self.objective["ratio"] not in ("sequence", "product"):
            return {"ratio": ratio.reshape(self.sequences.shape)}
        firsts = [self.sequences.tokens(i)[:1] for i in range(self.sequences.number)]
        return {"ratio": np.array([ratio[at[0]] if at.size else 1.0 for at in firsts])}

    def clipped_surrogate(self) -> dict[str, Any]:
        """J of given ratios, element by element."""
        arrays = self.inputs(dict(self.case.inputs))
        ratio, shape = self.number(arrays["ratio"]), arrays["ratio"].shape
        clip = {"dual": None} | dict(self.case.parameters["clip"])
        self.objective = {"surrogate": {"kind": "clip"} | clip, "ratio": "token"}
        found = self.clip_value(np.log(ratio), self.number(arrays["advantages"]), self.objective["surrogate"])
        return {"value": found.reshape(shape)}

    def aggregate_answer(self) -> dict[str, Any]:
        """Token values as one number."""
        arrays, mode = self.inputs(dict(self.case.inputs)), dict(self.case.parameters["mode"])
        self.sequences = self.layout(arrays)
        self.objective = self.choose({"aggregation": {"count": "all", "constant": 1.0} | mode})
        self.normalizer = self.positive(self.case.parameters.get("normalizer"))
        self.groups = arrays.get("groups")
        self.new = self.number(arrays["values"])
        return {"value": self.aggregate(self.new, self.objective["aggregation"])}

    def kl_penalty(self) -> dict[str, Any]:
        """The estimate at every position."""
        arrays = self.inputs(dict(self.case.inputs))
        self.new, self.ref_logp = self.number(arrays["logp"]), self.number(arrays["ref_logp"])
        penalty = {
            "estimator": self.case.parameters.get("estimator", "k3"),
            "log_ratio_clamp": None,
            "value_clamp": None,
        }
        return {"value": self.estimated(penalty).reshape(arrays["logp"].shape)}
