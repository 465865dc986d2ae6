"""gspo_core's public functions: what they are given, they return, or raise a TypeError or ValueError that names an argument."""

from __future__ import annotations

import inspect
import json
import re
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

import gspo_core as gspo

from .strange import LAYOUTS, NOT_ARRAYS, NUMBERS, ODD, REAL, arrays, filled, laid_out

B, T = 2, 3
OBJECTIVES = tuple(
    getattr(gspo.Objective, name)()
    for name, made in vars(gspo.Objective).items()
    if isinstance(made, classmethod) and not name.startswith(("_", "from_"))
)
PENALISED = gspo.Objective.gspo().replace(penalty=gspo.Penalty())
MODES = ("sequence_mean_token_mean", "sequence_mean_token_sum", "token_mean", "token_sum", "group_token_mean")
TOKENS, RESPONSES, GROUPS, SEQUENCES, BINARY = "tokens", "responses", "groups", "sequences", "binary"
CHOICES: dict[str, tuple[Any, ...]] = {
    "objective": (*OBJECTIVES, PENALISED),
    "mode": MODES,
    "estimator": ("k1", "k2", "k3", "k3_plus", "abs"),
    "clip": (gspo.Clip(0.1, 0.2), gspo.Clip(3e-4, 4e-4), gspo.Clip(0.2, 0.2, 3.0)),
    "center": ("mean", "leave_one_out", "none"),
    "scale": ("std", "batch_std", "leave_one_out_std", "none"),
    "eps_placement": ("std", "variance"),
    "method": ("batch", "group", None),
}
KINDS: dict[str, Any] = {
    **dict.fromkeys(("logp", "old_logp", "ref_logp", "behavior_logp", "values", "token_rewards"), TOKENS),
    **dict.fromkeys(("advantages", "rewards", "bootstrap"), RESPONSES),
    "groups": GROUPS,
    "sequences": SEQUENCES,
    "valid": BINARY,
    "mask": BINARY,
    "lengths": "lengths",
    "ratio": TOKENS,
}
FUNCTIONS = tuple(
    name
    for name in gspo.__all__
    if inspect.isfunction(getattr(gspo, name)) and name not in ("backend_of", "value_checks")
)
PER_TOKEN = {"gae_advantages": ("rewards",), "reinforce_returns": ("rewards",), "clipped_surrogate": ("advantages",)}
NAMES = {
    one for name in FUNCTIONS for one in inspect.signature(getattr(gspo, name)).parameters
} | {"mask", "offsets", "max_length", "low", "high", "dual", "context", "objective field", "count"}  # fmt: skip


def ordinary(function: str, name: str, packed: bool, seed: int) -> Any:
    """A value that fits the others."""
    kind = TOKENS if name in PER_TOKEN.get(function, ()) else KINDS.get(name)
    tokens, dtype = ((B * T,) if packed else (B, T)), REAL[seed % 3]
    layout = LAYOUTS[seed % len(LAYOUTS)]
    if kind == TOKENS:
        return laid_out(filled(tokens, dtype, seed, special=False), layout)
    if kind == RESPONSES:
        return filled((B,), dtype, seed, special=False)
    if kind == GROUPS:
        return np.asarray([seed % 2, 0])
    if kind == BINARY:
        return filled((B,), "bool", seed)
    if kind == SEQUENCES:
        return gspo.Packed(np.asarray([0, seed % 4, 6])) if packed else laid_out(filled(tokens, "bool", seed), layout)
    if kind == "lengths":
        return np.asarray([seed % 5, 3])
    return CHOICES[name][seed % len(CHOICES[name])] if name in CHOICES else None


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, dict[str, Any], bool]:
    """A function, its arguments, and whether one of them is an array of a dtype that it cannot mean."""
    function = draw(st.sampled_from(FUNCTIONS))
    parameters = inspect.signature(getattr(gspo, function)).parameters
    packed, seed = draw(st.booleans()), draw(st.integers(0, 2**16))
    given: dict[str, Any] = {}
    for i, (name, parameter) in enumerate(parameters.items()):
        value = ordinary(function, name, packed, seed + i)
        optional = parameter.default is not inspect.Parameter.empty
        if value is None and not optional:
            given[name] = {"bound": 1.0, "low": -1.0, "high": 1.0, "coefficient": 0.1, "max_length": 4, "cache": 2}[
                name
            ]
        elif value is not None and (not optional or draw(st.booleans())):
            given[name] = value
    nonsense = False
    for name in draw(st.lists(st.sampled_from(sorted(parameters)), max_size=2, unique=True)):
        strange = draw(st.one_of(arrays(), st.sampled_from(NOT_ARRAYS), st.sampled_from(NUMBERS)))
        given[name] = strange
        nonsense |= KINDS.get(name) is not None and isinstance(strange, np.ndarray) and str(strange.dtype) in STRANGE
    return function, given, nonsense


STRANGE = {str(np.dtype(name)) for name in ODD}


NAMED = re.compile(rf"^({'|'.join(map(re.escape, sorted(NAMES)))})\b[^:]*: ")


def check_words(error: Exception, named: re.Pattern[str], what: str) -> None:
    """One short sentence, which names the argument."""
    if not named.search(str(error)) or len(str(error)) > 1000:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error


def returns_or_names(case: tuple[str, dict[str, Any], bool]) -> None:
    function, given, nonsense = case
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # numbers near the end of float32 overflow as NumPy's do, and NumPy says so
        warnings.filterwarnings("ignore", category=RuntimeWarning, message=".*(overflow|invalid value|underflow).*")
        try:
            found = getattr(gspo, function)(**given)
        except (TypeError, ValueError) as error:
            check_words(error, NAMED, function)
            return
    assert not nonsense, f"{function} took an array of a dtype that it cannot mean"
    check_answer(found)


def check_answer(found: Any) -> None:
    """Arrays of float32, float64 or booleans, or tuples and dictionaries of them."""
    if isinstance(found, (tuple, dict)):
        for one in found.values() if isinstance(found, dict) else found:
            check_answer(one)
    elif found is not None and not isinstance(found, gspo.RunningMoments):
        assert str(np.asarray(found).dtype) in ("float32", "float64", "bool"), repr(found)


def test_every_function_returns_or_names_the_argument(fuzz: Any) -> None:
    fuzz(calls(), returns_or_names, 50)


LAYOUT_CLASSES = {"Padded": ("mask",), "Packed": ("offsets", "mask", "max_length")}
VALUES = (*NOT_ARRAYS, *NUMBERS, *MODES, *OBJECTIVES, gspo.Clip(0.1, 0.1), gspo.Aggregation(), {}, "k3", "token")


@st.composite
def builds(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A class of the public names and arguments of every kind."""
    name = draw(st.sampled_from([n for n in gspo.__all__ if inspect.isclass(getattr(gspo, n)) and n != "Backend"]))
    fields = [n for n in inspect.signature(getattr(gspo, name)).parameters if n != "context"]
    chosen = draw(st.lists(st.sampled_from(fields), unique=True)) if fields else []
    strange = st.one_of(st.sampled_from(VALUES), arrays())
    return name, {field: draw(strange) for field in chosen}


RECORDS = {"PolicyLoss", "PolicyLossSum", "AggregateSum"}


def builds_or_names(case: tuple[str, dict[str, Any]]) -> None:
    name, given = case
    if name in RECORDS:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            made = getattr(gspo, name)(**given)
        except (TypeError, ValueError) as error:
            words = "|".join(map(re.escape, sorted(inspect.signature(getattr(gspo, name)).parameters)))
            check_words(error, re.compile(rf"\b({words})\b"), name)
            return
    if isinstance(made, gspo.Objective):
        assert gspo.Objective.from_json(made.to_json()) == made
    assert repr(made)


def test_every_class_is_built_or_names_the_argument(fuzz: Any) -> None:
    fuzz(builds(), builds_or_names, 20)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(("token", "clip", "k3")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def objectives(draw: st.DrawFn) -> Any:
    """The JSON of an objective with something changed, or any JSON."""
    if draw(st.integers(0, 9)) == 0:
        return draw(JSON)
    whole = draw(st.sampled_from(CHOICES["objective"])).to_dict()
    part: Any = whole
    while isinstance(part, dict) and part:
        key = draw(st.sampled_from(sorted(part)))
        if draw(st.booleans()) or not isinstance(part[key], dict):
            change = draw(st.integers(0, 3))
            if change == 0:
                del part[key]
            else:
                part[key if change > 1 else draw(st.text(max_size=5))] = draw(JSON)
            break
        part = part[key]
    return whole


def reads_or_names(raw: Any) -> None:
    for read, given in ((gspo.Objective.from_dict, raw), (gspo.Objective.from_json, json.dumps(raw))):
        try:
            made = read(given)
        except (TypeError, ValueError) as error:
            check_words(error, re.compile(r"^[\w. ]+: "), "objective")
        else:
            assert gspo.Objective.from_json(made.to_json()) == made


def test_an_objective_is_read_or_the_field_is_named(fuzz: Any) -> None:
    fuzz(objectives(), reads_or_names, 30)


@pytest.mark.parametrize("text", ["", "{", "[", "NaN", "[" * 100_000, "\0", '{"ratio": 1e999}'])
def test_what_is_no_json_is_no_objective(text: str) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        gspo.Objective.from_json(text)
    assert len(str(error.value)) < 1000
