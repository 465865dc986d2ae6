"""What the suite asks of an implementation: a name, its capabilities, and `run(case)`.

A target implements only what it has. The runner asks for the outputs that its capabilities cover and
for nothing else; expected answers never reach it.

    class Mine:
        name = "mine"
        version = {"mine": "1.0"}
        capabilities = Capabilities(operations={"policy_loss"}, gradient=True)

        def run(self, case: Case) -> dict[str, Any]:
            return {"loss": ..., "gradient": ...}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, runtime_checkable

from .formats import OPERATIONS
from .words import choices

LAYOUTS = ("padded", "packed")
DTYPES = ("float32", "float64")
INPUT_DTYPES = ("bfloat16", "float16")
MAX_OBJECTIVES = 1000
METRICS = (
    "approx_kl",
    "clip_fraction",
    "clip_fraction_dual",
    "clip_fraction_high",
    "clip_fraction_low",
    "effective_sample_size",
    "kl_penalty",
    "num_sequences",
    "num_tokens",
    "ratio_is_one",
    "ratio_max",
    "ratio_mean",
    "ratio_min",
)
INPUTS = (
    "advantages",
    "behavior_logp",
    "bootstrap",
    "groups",
    "history",
    "history_sizes",
    "lengths",
    "logp",
    "mask",
    "offsets",
    "old_logp",
    "ratio",
    "ref_logp",
    "rewards",
    "token_rewards",
    "valid",
    "values",
)
PARAMETERS = (
    "advantages",
    "bound",
    "cache",
    "center",
    "clip",
    "coefficient",
    "ddof",
    "eps",
    "eps_placement",
    "estimator",
    "gamma",
    "high",
    "kind",
    "lam",
    "low",
    "max_length",
    "method",
    "mode",
    "normalizer",
    "objective",
    "scale",
    "shift",
)


@dataclass(frozen=True)
class Case:
    """One question. `inputs` holds NumPy arrays by argument name; `outputs` names the answers that are wanted.

    Log-probabilities stored in bfloat16 or float16 arrive as float32 arrays that are already rounded;
    `input_dtype` names the storage dtype. `step` has `inputs["parts"]`, a list of such mappings.
    """

    operation: str
    parameters: Mapping[str, Any]
    inputs: Mapping[str, Any]
    dtype: str = "float32"
    outputs: tuple[str, ...] = ("loss",)
    input_dtype: str | None = None
    id: str = ""

    @property
    def layout(self) -> str | None:
        """How its tokens lie: padded rows, packed segments, or None where there are no tokens."""
        arrays = self.inputs["parts"][0] if "parts" in self.inputs else self.inputs
        return "packed" if "offsets" in arrays else "padded" if "mask" in arrays else None

    @property
    def objective(self) -> Mapping[str, Any] | None:
        """The objective as JSON, where the operation has one."""
        return self.parameters.get("objective")


@dataclass(frozen=True)
class Capabilities:
    """What a target can do. `objectives`: None for any, or patterns; a pattern matches an objective that has all its fields.

    `parameters` and `inputs` name what the target understands besides what every case of its
    operations has; None means all of them.
    """

    operations: Set[str] = frozenset({"policy_loss"})
    dtypes: Set[str] = frozenset({"float32"})
    layouts: Set[str] = frozenset({"padded"})
    gradient: bool = False
    metrics: Set[str] = frozenset()
    token_advantages: bool = False
    objectives: Sequence[Mapping[str, Any]] | None = None
    input_dtypes: Set[str] = frozenset()
    inputs: Set[str] | None = None
    parameters: Set[str] | None = None

    def __post_init__(self) -> None:
        known = {
            "operations": OPERATIONS,
            "dtypes": DTYPES,
            "layouts": LAYOUTS,
            "metrics": METRICS,
            "input_dtypes": INPUT_DTYPES,
        }
        for name, words in known.items():
            object.__setattr__(self, name, _names(name, getattr(self, name), words))
        for name, words in {"inputs": INPUTS, "parameters": PARAMETERS}.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _names(name, getattr(self, name), words))
        for name in ("gradient", "token_advantages"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"capabilities.{name}: expected true or false, got {getattr(self, name)!r}")
        if self.objectives is not None:
            if len(self.objectives) > MAX_OBJECTIVES:
                raise ValueError(
                    f"capabilities: expected at most {MAX_OBJECTIVES} objectives, got {len(self.objectives)}"
                )
            object.__setattr__(self, "objectives", tuple(_pattern(pattern) for pattern in self.objectives))

    @classmethod
    def everything(cls, **changes: Any) -> Capabilities:
        """All the suite knows, except what `changes` says."""
        whole: dict[str, Any] = {
            "operations": OPERATIONS,
            "dtypes": DTYPES,
            "layouts": LAYOUTS,
            "gradient": True,
            "metrics": METRICS,
            "token_advantages": True,
            "input_dtypes": INPUT_DTYPES,
        }
        return cls(**(whole | changes))

    @classmethod
    def from_dict(cls, values: Any) -> Capabilities:
        """The inverse of `to_dict`; an unknown field or word is an error that names the near one."""
        if not isinstance(values, Mapping):
            raise TypeError(f"capabilities: expected an object, got {type(values).__name__}")
        known = [entry.name for entry in fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"capabilities: {choices(name, known)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        plain = {name: sorted(value) if isinstance(value, frozenset) else value for name, value in values.items()}
        return plain | {"objectives": None if self.objectives is None else [dict(item) for item in self.objectives]}


@runtime_checkable
class Target(Protocol):
    """An implementation under test. `version` says of what: `{"torch": "2.13.0"}`."""

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    @property
    def version(self) -> Mapping[str, str]:
        """What it is made of."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What it can be asked."""
        ...

    def run(self, case: Case) -> Mapping[str, Any]:
        """The outputs that `case.outputs` names: NumPy arrays, or plain numbers where the output is a scalar."""
        ...


@dataclass(frozen=True)
class FunctionTarget:
    """A target from a function of a case."""

    name: str
    function: Any = field(repr=False)
    capabilities: Capabilities = field(default_factory=Capabilities.everything, repr=False)
    version: Mapping[str, str] = field(default_factory=dict)

    def run(self, case: Case) -> Mapping[str, Any]:
        """The answer of the function."""
        return self.function(case)


class Skip(Exception):
    """Raised by a target to say: not this one, for this reason."""

    def __init__(self, reason: str, url: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.url = url


def _strings(name: str, value: Any) -> list[str]:
    iterable = isinstance(value, Iterable) and not isinstance(value, str)
    names = list(value) if iterable else []
    if not iterable or not all(isinstance(word, str) for word in names):
        raise TypeError(f"capabilities.{name}: expected a list of names, got {value!r}")
    return names


def _names(name: str, value: Any, words: tuple[str, ...]) -> frozenset[str]:
    names = frozenset(_strings(name, value))
    for word in sorted(names):
        if word not in words:
            raise ValueError(f"capabilities.{name}: {choices(word, words)}")
    return names


def _pattern(pattern: Any) -> Mapping[str, Any]:
    if not isinstance(pattern, Mapping):
        raise TypeError(f"capabilities.objectives: expected objects, got {pattern!r}")
    return pattern
