"""An objective: independent axes with named presets, validated, frozen, to and from JSON."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from .aggregation import Aggregation, as_aggregation
from .correction import Correction
from .penalty import Penalty
from .surrogate import Cispo, Clip, Gmpo, Reinforce, Sapo, Surrogate, Unclipped, Vespo
from .validation import check_choice, check_field, check_kind

RATIOS = ("token", "sequence", "gspo_token", "product")
SEQUENCE_RATIOS = ("sequence", "product")
_KINDS: dict[str, type[Any]] = {
    "clip": Clip,
    "unclipped": Unclipped,
    "reinforce": Reinforce,
    "cispo": Cispo,
    "gmpo": Gmpo,
    "sapo": Sapo,
    "vespo": Vespo,
}
PAPER_CLIP = Clip(3e-4, 4e-4)
PRESETS = (
    "gspo",
    "gspo_token",
    "grpo",
    "ppo",
    "dr_grpo",
    "dapo",
    "rloo",
    "reinforce_pp",
    "gmpo",
    "cispo",
    "sapo",
    "luspo",
    "decoupled",
    "vespo",
    "minirl",
)


@dataclass(frozen=True)
class Objective:
    """What a training step maximises, as independent axes; the loss is its negative.

    `ratio`: "sequence" (GSPO), "gspo_token", "token" (PPO, GRPO) or "product" (no length normalisation).
    `surrogate`: `Clip`, `Unclipped`, `Reinforce`, `Cispo`, `Gmpo`, `Sapo` or `Vespo`.
    `aggregation`: an `Aggregation` or the name of a mode. `penalty`: a KL term in the loss, or None.
    `correction`: a `Correction`, or several, for off-policy sampling. `log_ratio_cap`: None in the paper.

    >>> Objective.gspo().ratio, Objective.gspo().surrogate
    ('sequence', Clip(low=0.0003, high=0.0004, dual=None))
    >>> Objective.from_json(Objective.dapo().to_json()) == Objective.dapo()
    True
    """

    ratio: str
    surrogate: Surrogate
    aggregation: Aggregation = Aggregation()
    penalty: Penalty | None = None
    correction: tuple[Correction, ...] = ()
    log_ratio_cap: float | None = None

    def __post_init__(self) -> None:
        check_choice("ratio", self.ratio, RATIOS)
        object.__setattr__(self, "aggregation", as_aggregation(self.aggregation, "aggregation"))
        object.__setattr__(self, "correction", _as_tuple(self.correction))
        self._check_types()
        if self.log_ratio_cap is not None:
            check_field(self, "log_ratio_cap")
        if isinstance(self.surrogate, Gmpo) and self.ratio != "token":
            raise ValueError(f"ratio: expected 'token' with the Gmpo surrogate, which clips tokens, got {self.ratio!r}")

    def _check_types(self) -> None:
        # One of them itself: backends know these by their names and fields, and would not ask a subclass.
        if type(self.surrogate) not in _KINDS.values():
            raise TypeError(f"surrogate: expected one of {', '.join(_KINDS)}, got {type(self.surrogate).__name__}")
        if self.penalty is not None:
            check_kind("penalty", self.penalty, Penalty)
        for item in self.correction:
            check_kind("correction", item, Correction)

    @property
    def per_sequence(self) -> bool:
        """Whether the surrogate has one value per response rather than one per token."""
        weighted = isinstance(self.surrogate, (Reinforce, Cispo, Vespo))
        return isinstance(self.surrogate, Gmpo) or (self.ratio in SEQUENCE_RATIOS and not weighted)

    @property
    def allows_token_advantages(self) -> bool:
        """Whether `advantages` may vary within a response (GSPO-ADV-14)."""
        return not self.per_sequence

    def replace(self, **changes: Any) -> Objective:
        """A copy with some axes changed."""
        for name in changes:
            check_choice("axis", name, tuple(axis.name for axis in dataclasses.fields(self)))
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; the surrogate carries its `kind`."""
        fields = dataclasses.asdict(self)
        kind = next(kind for kind, cls in _KINDS.items() if type(self.surrogate) is cls)
        return fields | {"surrogate": {"kind": kind} | fields["surrogate"], "correction": list(fields["correction"])}

    def to_json(self) -> str:
        """The objective as one JSON object."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Objective:
        """The inverse of `to_json`."""
        try:
            fields = json.loads(text, object_pairs_hook=_once)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"text: expected the JSON of an objective, got {repr(text)[:60]}: {error}") from None
        return cls.from_dict(fields)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Objective:
        """The inverse of `to_dict`; what may be left out has its default, an unknown or missing field is an error.

        Short forms are those of the constructor: the name of an aggregation's mode, one correction without a list.
        """
        values = _known("objective", cls, fields)
        aggregation, penalty = values.get("aggregation"), values.get("penalty")
        values["surrogate"] = _surrogate(values.get("surrogate"))
        values["aggregation"] = Aggregation() if aggregation is None else _aggregation(aggregation)
        values["penalty"] = None if penalty is None else _penalty(penalty)
        values["correction"] = tuple(_build("correction", Correction, item) for item in _corrections(values))
        return cls(**values)

    @classmethod
    def gspo(cls, clip: Clip = PAPER_CLIP) -> Objective:
        """GSPO, eq. 5: one length-normalised ratio, one clip decision and one weight per response."""
        return cls("sequence", check_kind("clip", clip, Clip), Aggregation())

    @classmethod
    def gspo_token(cls, clip: Clip = PAPER_CLIP) -> Objective:
        """GSPO-token, eq. 13: GSPO with advantages that may vary by token."""
        return cls("gspo_token", check_kind("clip", clip, Clip), Aggregation())

    @classmethod
    def grpo(cls, clip: Clip = Clip(0.2, 0.27)) -> Objective:
        """GRPO, eq. 2, with the clip range of the GSPO paper's baseline and no KL term."""
        return cls("token", check_kind("clip", clip, Clip), Aggregation())

    @classmethod
    def ppo(cls, clip: Clip = Clip(0.2, 0.2)) -> Objective:
        """PPO, eq. 1."""
        return cls("token", check_kind("clip", clip, Clip), Aggregation())

    @classmethod
    def dr_grpo(cls, constant: float = 1.0, clip: Clip = Clip(0.2, 0.2)) -> Objective:
        """Dr. GRPO (arXiv 2503.20783): no 1/|y_i|; token sums over a constant."""
        return cls("token", check_kind("clip", clip, Clip), Aggregation("sequence_mean_token_sum", constant=constant))

    @classmethod
    def dapo(cls, clip: Clip = Clip(0.2, 0.28)) -> Objective:
        """DAPO (arXiv 2503.14476): token mean within each group."""
        return cls("token", check_kind("clip", clip, Clip), Aggregation("group_token_mean"))

    @classmethod
    def rloo(cls) -> Objective:
        """RLOO (arXiv 2402.14740): REINFORCE on whole responses; advantages are leave-one-out."""
        return cls("token", Reinforce(), Aggregation("sequence_mean_token_sum"))

    @classmethod
    def reinforce_pp(cls, clip: Clip = Clip(0.2, 0.2)) -> Objective:
        """REINFORCE++ (arXiv 2501.03262): PPO's clip, token mean; advantages are whitened returns."""
        return cls("token", check_kind("clip", clip, Clip), Aggregation("token_mean"))

    @classmethod
    def gmpo(cls, surrogate: Gmpo = Gmpo()) -> Objective:
        """GMPO (arXiv 2507.20673): geometric mean of clipped token ratios."""
        return cls("token", check_kind("surrogate", surrogate, Gmpo), Aggregation())

    @classmethod
    def cispo(cls, surrogate: Cispo = Cispo()) -> Objective:
        """CISPO (arXiv 2506.13585): clipped weights, never clipped gradients."""
        return cls("token", check_kind("surrogate", surrogate, Cispo), Aggregation("group_token_mean"))

    @classmethod
    def sapo(cls, surrogate: Sapo = Sapo()) -> Objective:
        """SAPO (arXiv 2511.20347): a soft gate on the token ratio."""
        return cls("token", check_kind("surrogate", surrogate, Sapo), Aggregation())

    @classmethod
    def luspo(cls, clip: Clip = PAPER_CLIP) -> Objective:
        """LUSPO (arXiv 2602.05261): GSPO times |y_i|."""
        return cls("sequence", check_kind("clip", clip, Clip), Aggregation("sequence_mean_token_sum"))

    @classmethod
    def decoupled(cls, clip: Clip = Clip(0.2, 0.2), cap: float = 5.0) -> Objective:
        """Decoupled PPO (arXiv 2110.00641): ratio to the proximal policy, tokens above the behaviour cap dropped."""
        return cls(
            "token",
            check_kind("clip", clip, Clip),
            Aggregation("token_mean"),
            correction=(Correction("token", "mask", high=cap),),
        )

    @classmethod
    def vespo(cls, surrogate: Vespo = Vespo()) -> Objective:
        """VESPO (arXiv 2602.10693): a smooth kernel on the un-normalised sequence ratio."""
        return cls("product", check_kind("surrogate", surrogate, Vespo), Aggregation("token_mean"))

    @classmethod
    def minirl(cls, gate: Clip = Clip(0.2, 0.27), cap: float = 5.0) -> Objective:
        """MiniRL (arXiv 2512.01374): gated REINFORCE with truncated π/μ weights, token sums."""
        weight = Correction("token", "clamp", high=cap, numerator="current")
        return cls("token", Reinforce(gate), Aggregation("sequence_mean_token_sum"), correction=(weight,))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{name!r} stands twice")
    return fields


def _known(name: str, cls: type[Any], fields: Any) -> dict[str, Any]:
    values = _object(name, fields)
    known = dataclasses.fields(cls)
    for field in values:
        check_choice(f"{name} field", field, tuple(one.name for one in known))
    for one in known:
        if one.default is dataclasses.MISSING and one.name not in values:
            raise ValueError(f"{name} field: expected {one.name!r}, which is missing")
    return values


def _as_tuple(corrections: Any) -> tuple[Correction, ...]:
    if isinstance(corrections, Correction):
        return (corrections,)
    try:
        return tuple(corrections or ())
    except TypeError:
        raise TypeError(f"correction: expected Correction entries, got {type(corrections).__name__}") from None


def _corrections(values: dict[str, Any]) -> list[Any]:
    found = values.get("correction")
    if found is None or isinstance(found, Mapping):
        return [] if found is None else [found]
    if isinstance(found, str) or not isinstance(found, Sequence):
        raise TypeError(f"correction: expected a list, got {type(found).__name__}")
    return list(cast("Sequence[Any]", found))


def _object(name: str, fields: Any) -> dict[str, Any]:
    if not isinstance(fields, Mapping):
        raise TypeError(f"{name}: expected a JSON object, got {type(fields).__name__}")
    return dict(cast("Mapping[str, Any]", fields))


def _build(name: str, cls: type[Any], fields: Any) -> Any:
    return cls(**_known(name, cls, fields))


def _aggregation(fields: Any) -> Aggregation:
    return (
        as_aggregation(fields, "aggregation") if isinstance(fields, str) else _build("aggregation", Aggregation, fields)
    )


def _surrogate(fields: Any) -> Any:
    values = _object("surrogate", fields)
    kind = values.pop("kind", None)
    check_choice("surrogate kind", kind, tuple(_KINDS))
    if kind == "reinforce" and values.get("gate") is not None:
        values["gate"] = _build("gate", Clip, values["gate"])
    return _build("surrogate", _KINDS[kind], values)


def _penalty(fields: Any) -> Penalty:
    values = _known("penalty", Penalty, fields)
    if values.get("aggregation") is not None:
        values["aggregation"] = _aggregation(values["aggregation"])
    return Penalty(**values)
