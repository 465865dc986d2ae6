"""A vector as the rest of the suite sees it, and how it is read from `vectors/<area>/<slug>.json`.

    for vector in load_vectors("aggregation"):
        vector.id, vector.operation, vector.parameters, vector.inputs["logp"], vector.expected["loss"].value

Inputs and expected values are decoded on first use; arrays are read-only, so copy before you hand
them to code that may write. Truth has more digits than float64: `value` is its float64 and `rest` what
float64 leaves over, so that `Expected.error` is right to the last bit of a float64 answer too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .tensors import NumPyArray, decode_array, read_tensors

ROOT = Path(__file__).resolve().parent
VECTORS = ROOT / "vectors"
AREAS = (
    "ratio",
    "surrogate",
    "aggregation",
    "advantage",
    "reward",
    "mask",
    "penalty",
    "correction",
    "gradient",
    "stop-gradient",
    "numerics",
    "packing",
    "distribution",
    "metrics",
    "sampling",
    "pipeline",
)
LEVELS = ("MUST", "SHOULD", "MAY")
OPERATIONS = (
    "policy_loss",
    "ratio",
    "clipped_surrogate",
    "aggregate",
    "kl_penalty",
    "group_advantages",
    "leave_one_out_advantages",
    "gae_advantages",
    "reinforce_returns",
    "whiten",
    "reinforce_pp_advantages",
    "clip_advantages",
    "clip_rewards",
    "normalize_rewards",
    "token_kl_rewards",
    "soft_overlong_penalty",
    "informative_groups",
    "step",
    "pipeline",
)


class Compare(NamedTuple):
    """How an answer is judged: `scale` accepts |got - truth| <= k u(dtype) scale, `exact` equality alone."""

    rule: str = "scale"
    k: float = 16.0


@dataclass(frozen=True)
class Expected:
    """The truth of one output; `raw` is its entry in the JSON.

    `scale` is the magnitude against which rounding is measured, element by element; 0 where exactness
    is owed. `kink_margin` is the distance to the nearest discontinuity of the gradient, relative.
    """

    raw: dict[str, Any] = field(repr=False)
    folder: Path = field(repr=False, default=VECTORS)

    @property
    def compare(self) -> Compare:
        return Compare(**self.raw["compare"]) if "compare" in self.raw else Compare()

    @property
    def kink_margin(self) -> float | None:
        margin = self.raw.get("kink_margin")
        return None if margin is None else float(margin)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def value(self) -> NumPyArray:
        """Truth rounded to float64."""
        return self._split[0]

    @property
    def rest(self) -> NumPyArray:
        """Truth minus `value`, rounded to float64."""
        return self._split[1]

    @cached_property
    def scale(self) -> NumPyArray:
        if self.compare.rule == "exact":
            return np.zeros(self.shape)
        entry = self.raw["scale"]
        if isinstance(entry, dict):
            return read_tensors(self.folder / entry["file"])[entry["key"]]
        return np.broadcast_to(np.array(_map(float, entry), dtype=np.float64), self.shape)

    @property
    def text(self) -> Any:
        """The decimal strings as written, nested like the output (None for large arrays, which live in a file)."""
        return None if isinstance(self.raw["value"], dict) else self.raw["value"]

    @cached_property
    def _split(self) -> tuple[NumPyArray, NumPyArray]:
        entry = self.raw["value"]
        if isinstance(entry, dict):
            stored = read_tensors(self.folder / entry["file"])
            return stored[entry["key"]], stored[entry["key"] + ".rest"]
        with localcontext() as context:
            context.prec = 60
            value = np.array(_map(float, entry), dtype=np.float64)
            rest = np.array(_map(lambda item: _rest(item), entry), dtype=np.float64)
        return value, rest

    def error(self, got: NumPyArray) -> NumPyArray:
        """|got - truth| per element, exact enough for float64 answers; NaN where got is NaN."""
        difference = np.asarray(got, dtype=np.float64) - self.value
        return np.abs(difference - self.rest)


@dataclass(frozen=True)
class Vector:
    """One golden case. `dtype` names the dtypes it is run in, `input_dtype` the storage dtype of its log-probabilities."""

    id: str
    title: str
    clauses: tuple[str, ...]
    level: str
    requires: tuple[str, ...]
    flags: tuple[str, ...]
    source: dict[str, Any]
    operation: str
    dtype: tuple[str, ...]
    input_dtype: str | None
    parameters: dict[str, Any]
    note: str
    raw: dict[str, Any] = field(repr=False, compare=False)
    folder: Path = field(repr=False, compare=False, default=VECTORS)

    @property
    def area(self) -> str:
        return self.id.partition("/")[0]

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the outputs that have a truth."""
        return tuple(self.raw["expected"])

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """Arrays by argument name; `step` has `parts`, a list of such dictionaries."""
        return {name: self._decode(entry) for name, entry in self.raw["inputs"].items()}

    @cached_property
    def expected(self) -> dict[str, Expected]:
        """Truth by output name: "loss", "gradient", "metrics.clip_fraction", ..."""
        return {name: Expected(entry, self.folder) for name, entry in self.raw["expected"].items()}

    def _decode(self, entry: Any) -> Any:
        if isinstance(entry, list):
            return [{name: self._decode(item) for name, item in part.items()} for part in entry]
        return decode_array(entry, self.folder) if isinstance(entry, dict) else entry


def read_vector(path: Path) -> Vector:
    """The vector of one file."""
    return vector_from_json(json.loads(path.read_text(encoding="utf-8")), path.parent)


def vector_from_json(raw: dict[str, Any], folder: Path = VECTORS) -> Vector:
    """The vector of a decoded JSON object; `folder` is where its safetensors files lie."""
    return Vector(
        id=raw["id"],
        title=raw["title"],
        clauses=tuple(raw["clauses"]),
        level=raw["level"],
        requires=tuple(raw["requires"]),
        flags=tuple(raw["flags"]),
        source=raw["source"],
        operation=raw["operation"],
        dtype=tuple(raw["dtype"]),
        input_dtype=raw["input_dtype"],
        parameters=raw["parameters"],
        note=raw.get("note", ""),
        raw=raw,
        folder=folder,
    )


def load_vectors(area: str | None = None, *, root: Path = VECTORS) -> list[Vector]:
    """Every vector, or those of one area, by id."""
    if area is not None and area not in AREAS:
        raise ValueError(f"area: expected one of {', '.join(AREAS)}, got {area!r}")
    return [vector for vector in _all(root) if area in (None, vector.area)]


@cache
def _all(root: Path) -> tuple[Vector, ...]:
    return tuple(sorted((read_vector(path) for path in root.glob("*/*.json")), key=lambda vector: vector.id))


def _map(function: Any, nested: Any) -> Any:
    return [_map(function, item) for item in nested] if isinstance(nested, list) else function(nested)


def _rest(text: Any) -> float:
    exact = Decimal(text)
    return float(exact - Decimal(float(exact))) if exact.is_finite() else 0.0
