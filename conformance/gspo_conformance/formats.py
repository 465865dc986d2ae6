"""A vector as the rest of the suite sees it, and how it is read from `vectors/<area>/<slug>.json`.

    for vector in load_vectors("aggregation"):
        vector.id, vector.operation, vector.parameters, vector.inputs["logp"], vector.expected["loss"].value

Inputs and expected values are decoded on first use; arrays are read-only, so copy before you hand
them to code that may write. Truth has more digits than float64: `value` is its float64 and `rest` what
float64 leaves over, so that `Expected.error` is right to the last bit of a float64 answer too. A vector
that `refuses` has no truth: the right answer to it is an error about the argument of that name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from functools import cache, cached_property
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .tensors import NumPyArray, decode_array, repeated, size_of
from .words import cut, read_json

ROOT = Path(__file__).resolve().parent
VECTORS = ROOT / "vectors"
MAX_BYTES = 2**24
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

    `kink_margin` is the distance to the nearest discontinuity of the gradient, relative.
    """

    raw: dict[str, Any] = field(repr=False)

    @property
    def compare(self) -> Compare:
        """How an answer to this output is judged."""
        return Compare(**self.raw["compare"]) if "compare" in self.raw else Compare()

    @property
    def kink_margin(self) -> float | None:
        """The relative distance to the nearest decision; None where nothing is decided."""
        margin = self.raw.get("kink_margin")
        return None if margin is None else float(margin)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the output."""
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
        """The magnitude against which rounding is measured, in the shape of the output; 0 where exactness is owed."""
        numbers = _numbers("0" if self.compare.rule == "exact" else self.raw["scale"], float)
        if numbers.shape not in ((), self.shape):
            raise ValueError(f"scale: expected one number or shape {self.shape}, got shape {numbers.shape}")
        return np.broadcast_to(numbers, self.shape)

    @property
    def text(self) -> Any:
        """The decimal strings as written, nested like the output (None for large arrays, which are run-length coded)."""
        return None if isinstance(self.raw["value"], dict) else self.raw["value"]

    @cached_property
    def _split(self) -> tuple[NumPyArray, NumPyArray]:
        with localcontext() as context:
            context.prec = 60
            return _numbers(self.raw["value"], float), _numbers(self.raw["value"], _rest)

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
    refuses: str | None
    raw: dict[str, Any] = field(repr=False, compare=False)
    folder: Path = field(repr=False, compare=False, default=VECTORS)

    @property
    def area(self) -> str:
        """The folder that it lies in."""
        return self.id.partition("/")[0]

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the outputs that are asked for; all have a truth, unless the vector refuses."""
        return tuple(self.raw["refuses"]["outputs"] if "refuses" in self.raw else self.raw["expected"])

    @property
    def largest(self) -> tuple[int, ...]:
        """The shape of the largest input."""
        shapes = (tuple(entry["shape"]) for entry in _entries(self.raw["inputs"]))
        return max(shapes, key=lambda shape: (prod(shape), shape), default=())

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """Arrays by argument name; `step` has `parts`, a list of such dictionaries."""
        return {name: self.decode(entry) for name, entry in self.raw["inputs"].items()}

    @cached_property
    def expected(self) -> dict[str, Expected]:
        """Truth by output name: "loss", "gradient", "metrics.clip_fraction", ..."""
        return {name: Expected(entry) for name, entry in self.raw["expected"].items()}

    def decode(self, entry: Any) -> Any:
        """The array of an entry of `inputs`; lists of entries map."""
        if isinstance(entry, list):
            return [{name: self.decode(item) for name, item in part.items()} for part in entry]
        return decode_array(entry, self.folder) if isinstance(entry, dict) else entry


def read_vector(path: Path) -> Vector:
    """The vector of one file; a `ValueError` names a file that is none."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: expected a vector, a file of at most {MAX_BYTES} bytes")
    try:
        return vector_from_json(read_json(path.read_text(encoding="utf-8")), path.parent)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: not a vector: {type(error).__name__}: {cut(str(error), 200)}") from None


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
        refuses=raw.get("refuses", {}).get("argument"),
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


def _entries(inputs: Any) -> list[dict[str, Any]]:
    """The arrays of `inputs`, those of parts among them."""
    if isinstance(inputs, list):
        return [entry for item in inputs for entry in _entries(item)]
    if not isinstance(inputs, dict):
        return []
    return [inputs] if "shape" in inputs else [entry for item in inputs.values() for entry in _entries(item)]


def _numbers(entry: Any, read: Callable[[Any], float]) -> NumPyArray:
    """Nested lists of numbers as text, or `{shape, runs}` with runs of equal numbers."""
    if not isinstance(entry, dict):
        return np.array(_map(read, entry), dtype=np.float64)
    runs = [(read(value), count) for value, count in entry["runs"]]
    return np.array(repeated(runs, size_of(entry["shape"])), dtype=np.float64).reshape(entry["shape"])


def _map(read: Callable[[Any], float], nested: Any) -> Any:
    return [_map(read, item) for item in nested] if isinstance(nested, list) else read(nested)


def _rest(text: Any) -> float:
    """What the float64 nearest to a decimal number leaves over."""
    exact = Decimal(text)
    return float(exact - Decimal(float(exact))) if exact.is_finite() else 0.0
