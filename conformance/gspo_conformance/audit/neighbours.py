"""Objectives that differ from a claim in one axis: another ratio, range, aggregation, no penalty or another correction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import product

from gspo_core import Aggregation, Cispo, Correction, Objective
from gspo_core.aggregation import MODES
from gspo_core.objective import PRESETS

LEVELS = ("token", "geometric", "sequence")
ACTIONS = {"clamp": "held at them", "mask": "set to 0"}
BOUNDS = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 8.0, 10.0)
WEIGHTS = (0.1, 0.2, 0.28, 0.3, 1.0, 2.0, 3.0, 5.0)


def neighbours(claimed: Objective) -> Iterator[tuple[str, Objective]]:
    """What differs from an objective in one axis, in words, and the objective."""
    presets = (Objective.gspo(), Objective.grpo(), Objective.ppo(), Objective.dapo(), Objective.luspo())
    wholes = {name: getattr(Objective, name)() for name in PRESETS}
    changes = [(f"{name}(){_apart(claimed, whole)}", vars(whole)) for name, whole in wholes.items()]
    changes += [(f"the aggregation {mode}", {"aggregation": Aggregation(mode)}) for mode in MODES]
    changes += [(f"the {ratio} ratio", {"ratio": ratio}) for ratio in ("token", "sequence", "gspo_token", "product")]
    changes += [(f"the range of {one.surrogate}", {"surrogate": one.surrogate}) for one in presets]
    changes += [(f"the surrogate of {name}()", {"surrogate": getattr(Objective, name)().surrogate}) for name in PRESETS]
    if isinstance(claimed.surrogate, Cispo):
        weights = product((claimed.surrogate.low, None, *WEIGHTS), (claimed.surrogate.high, *WEIGHTS))
        changes += [(f"the weights of {Cispo(*ends)}", {"surrogate": Cispo(*ends)}) for ends in weights]
    changes += [("no penalty", {"penalty": None}), ("no correction", {"correction": ()})]
    changes += [(f"its correction bounded by {high:g}", {"correction": _bounded(claimed, high)}) for high in BOUNDS]
    for level, one in product(LEVELS, claimed.correction[:1]):
        other = {"correction": (replace(one, level=level), *claimed.correction[1:])}
        changes.append((f"weights of the level {level} where {one.level} is claimed", other))
    for one, low in product(claimed.correction[:1], (None, claimed.correction[0].low if claimed.correction else None)):
        for action, words in ACTIONS.items():
            other = {"correction": (replace(one, action=action, low=low), *claimed.correction[1:])}
            changes.append((f"weights outside their bounds {words}", other))
    for level, high in product(LEVELS, (2.0, 3.0, 5.0, None)):
        bound = "no bound" if high is None else f"the bound {high:g}"
        weight = {"correction": (Correction(level, high=high),)}
        changes.append((f"a correction for the sampler, of the level {level}, with {bound}", weight))
    for told, change in changes:
        with suppress(ValueError, TypeError):
            other = claimed.replace(**change)
            if other != claimed:
                yield told, other


def _bounded(claimed: Objective, high: float) -> tuple[Correction, ...]:
    """The claimed corrections, the first of them with another upper bound."""
    return tuple(replace(one, high=high) if at == 0 else one for at, one in enumerate(claimed.correction))


def _apart(claimed: Objective, whole: Objective) -> str:
    """In which axes a preset is not what is claimed: `: the token ratio, the range Clip(low=0.2, high=0.2, dual=None)`."""
    words = {
        "ratio": f"the {whole.ratio} ratio",
        "surrogate": f"the surrogate {whole.surrogate}",
        "aggregation": f"the aggregation {whole.aggregation.mode}",
        "penalty": "no penalty" if whole.penalty is None else "a penalty",
    }
    told = [said for name, said in words.items() if str(getattr(whole, name)) != str(getattr(claimed, name))]
    return f": {', '.join(told)}" if told else ""
