"""What the core asks of a backend, and what it may not ask: two ranks in two threads, and arrays that nobody may read."""

from __future__ import annotations

import importlib.metadata
import itertools
import math
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import array_api_strict as strict
import numpy as np
import pytest

import gspo_core as gspo
from gspo_core import Backend, backend, backend_of
from gspo_core.backend import register_backend
from gspo_core.groups import index_groups, longest_segment

from .batches import Batch, axes

AXES = axes()
OBJECTIVES = [pytest.param(objective, id=name) for name, objective in AXES.items()]


@pytest.fixture(autouse=True)
def _backends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_BACKENDS", {})


def _arrays(values: Any, dtype: str | None = None) -> np.ndarray:
    return np.array(values, dtype=dtype)


# Two ranks


class Pair:
    """Two threads that meet to add what they hold."""

    def __init__(self) -> None:
        self.rank = threading.local()
        self._barrier = threading.Barrier(2, timeout=5)
        self._held: list[Any] = [None, None]

    def meet(self, values: Any) -> list[Any]:
        """What both hold; each rank leaves after the other has seen it."""
        self._held[self.rank.number] = values
        self._barrier.wait()
        held = list(self._held)
        self._barrier.wait()
        return held

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """`work` on both ranks."""

        def start(number: int) -> Any:
            self.rank.number = number
            try:
                return work(number)
            except BaseException:
                self._barrier.abort()
                raise

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(start, range(2)))


class Ranks(Backend):
    """The fallback with sums over a `Pair`."""

    def all_reduce_sum(self, values: Any, group: Any) -> Any:
        return values if group is None else sum(group.meet(values))

    def all_reduce_max(self, values: Any, group: Any) -> Any:
        return values if group is None else np.maximum(*group.meet(values))


def _columns(arguments: dict[str, Any], columns: slice, pair: Pair) -> dict[str, Any]:
    part = {
        name: value[:, columns] if np.ndim(value) == 2 else value
        for name, value in arguments.items()
        if name != "sequences"
    }
    return part | {"sequences": gspo.Padded(arguments["sequences"].mask[:, columns], context=pair)}


@pytest.mark.parametrize("cut", [0, 3])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_responses_cut_over_two_ranks_have_the_loss_of_whole_ones(objective: gspo.Objective, cut: int) -> None:
    """Every rank has the loss and the metrics of the whole, and the gradient of its own tokens; one rank may have none."""
    register_backend("numpy", Ranks())
    arguments = Batch().padded(_arrays, per_token=objective.allows_token_advantages)
    whole, gradient = gspo.policy_loss(objective, **arguments), gspo.policy_gradient(objective, **arguments)
    pair, columns = Pair(), (slice(0, cut), slice(cut, None))

    def work(rank: int) -> Any:
        mine = _columns(arguments, columns[rank], pair)
        parts = gspo.policy_loss_sum(objective, **mine) if objective.penalty is None else None
        return gspo.policy_loss(objective, **mine), gspo.policy_gradient(objective, **mine), parts

    for rank, (found, slopes, parts) in enumerate(pair.run(work)):
        np.testing.assert_allclose(float(found.loss), float(whole.loss), rtol=1e-12)
        for name, value in whole.metrics.items():
            np.testing.assert_allclose(float(found.metrics[name]), float(value), rtol=1e-12, err_msg=name)
        np.testing.assert_allclose(slopes, gradient[:, columns[rank]], rtol=1e-11, atol=1e-15)
        if parts is not None and parts.count:
            np.testing.assert_allclose(float(parts.sum / parts.count), float(whole.loss), rtol=1e-12)


def test_a_ratio_may_be_cut_over_ranks_and_a_return_may_not() -> None:
    register_backend("numpy", Ranks())
    batch, pair = Batch().padded(_arrays), Pair()
    new, old, mask = batch["logp"], batch["old_logp"], batch["sequences"]
    ends = (slice(0, 2), slice(2, None))

    def work(rank: int) -> np.ndarray:
        mine = gspo.Padded(mask.mask[:, ends[rank]], context=pair)
        return gspo.sequence_ratio(new[:, ends[rank]], old[:, ends[rank]], mine)

    for found in pair.run(work):
        np.testing.assert_allclose(found, gspo.sequence_ratio(new, old, mask), rtol=1e-14)
    cut = gspo.Padded(mask.mask, context=pair)
    for function in (
        gspo.reinforce_returns,
        gspo.whiten,
        lambda values, part: gspo.gae_advantages(values, values, part),
    ):
        with pytest.raises(
            ValueError, match=r"^sequences: expected whole sequences \(context=None\), got a group of ranks"
        ):
            function(new, cut)


def test_packed_responses_may_be_cut_over_ranks_too() -> None:
    register_backend("numpy", Ranks())
    pair, parts = Pair(), ([1.0, 2.0, 4.0], [8.0, -1.0])
    offsets = np.asarray([0, 2, 3]), np.asarray([0, 1, 2])

    def work(rank: int) -> np.ndarray:
        sequences = gspo.Packed(offsets[rank], context=pair)
        return gspo.sequence_log_ratio(np.asarray(parts[rank]), np.zeros(len(parts[rank])), sequences)

    for found in pair.run(work):
        np.testing.assert_allclose(found, [11 / 3, 1.5])


def test_the_fallback_has_one_rank() -> None:
    values, plain = np.arange(3.0), Backend()
    assert plain.all_reduce_sum(values, None) is plain.all_reduce_max(values, None) is values
    assert plain.vary(values, None) is plain.stop_gradient(values) is values
    for reduce in (plain.all_reduce_sum, plain.all_reduce_max):
        with pytest.raises(
            ValueError, match=r"^the standard backend has no ranks to sum over, got a group: 'a group'$"
        ):
            reduce(values, "a group")


# Arrays that nobody may read


class Blind(Backend):
    """As under a compiler: no value can be looked at, nor what follows from one."""

    def can_inspect(self, values: Any) -> bool:
        return False

    def all_finite(self, values: Any, condition: Any = None) -> bool:
        raise AssertionError("asked only where values may be read")


REWARDS, GROUPS = np.asarray([0.5, 2.0, -1.25, 0.125, 2.5]), np.asarray([3, -1, 3, 7, -1])
OFFSETS = np.asarray([0, 2, 2, 5])
VALUES = np.asarray([1.0, -2.0, 0.5, 4.0, -1.0, 9.0])
WITHOUT_READING: dict[str, Callable[[Any], Any]] = {
    "group_advantages": lambda xp: gspo.group_advantages(xp(REWARDS), xp(GROUPS)),
    "leave_one_out": lambda xp: gspo.group_advantages(xp(REWARDS), xp(GROUPS), scale="leave_one_out_std"),
    "sorted": lambda xp: gspo.group_advantages(xp(REWARDS), xp(np.sort(GROUPS)), valid=xp(np.asarray([1, 0, 1, 1, 1]))),
    "normalize": lambda xp: gspo.normalize_rewards(xp(REWARDS), method="group", groups=xp(GROUPS)),
    "informative": lambda xp: gspo.informative_groups(xp(REWARDS), xp(GROUPS), low=0.0),
    "clip": lambda xp: gspo.clip_rewards(xp(REWARDS), -1.0, 1.0),
    "overlong": lambda xp: gspo.soft_overlong_penalty(xp(np.asarray([3, 5, 9])), 8, 4),
    "packed": lambda xp: gspo.sequence_log_ratio(xp(VALUES), xp(VALUES * 0), gspo.Packed(xp(OFFSETS))),
    "bounded": lambda xp: gspo.sequence_log_ratio(xp(VALUES), xp(VALUES * 0), gspo.Packed(xp(OFFSETS), max_length=3)),
    "beyond": lambda xp: gspo.sequence_log_ratio(xp(VALUES), xp(VALUES * 0), gspo.Packed(xp(OFFSETS), max_length=99)),
    "masked": lambda xp: gspo.aggregate(xp(VALUES), gspo.Packed(xp(OFFSETS), mask=xp(VALUES > 0)), normalizer=xp(np.asarray(2.0))),
    "returns": lambda xp: gspo.reinforce_returns(xp(VALUES), gspo.Packed(xp(OFFSETS)), gamma=0.5),
    "bounded_returns": lambda xp: gspo.reinforce_returns(xp(VALUES), gspo.Packed(xp(OFFSETS), max_length=3), gamma=0.5),
    "loose_returns": lambda xp: gspo.reinforce_returns(xp(VALUES), gspo.Packed(xp(OFFSETS), max_length=99), gamma=0.5),
    "gae": lambda xp: gspo.gae_advantages(xp(VALUES[None]), xp(VALUES[None]), xp(np.ones((1, 6))), gamma=0.9, lam=0.5).advantages,
    "whiten": lambda xp: gspo.whiten(xp(VALUES)),
}  # fmt: skip


@pytest.mark.parametrize("case", WITHOUT_READING)
def test_what_cannot_be_read_gives_the_same_numbers(case: str) -> None:
    def foreign(values: Any) -> Any:
        return strict.asarray(values)

    register_backend("array_api_strict", Blind())
    found = np.from_dlpack(WITHOUT_READING[case](foreign))
    np.testing.assert_allclose(found, WITHOUT_READING[case](np.asarray), rtol=1e-13)


@pytest.mark.parametrize("blind", [False, True])
def test_a_bound_on_the_longest_segment_changes_no_return(blind: bool) -> None:
    if blind:
        register_backend("numpy", Blind())
    for case in ("returns", "bounded_returns", "loose_returns"):
        found = WITHOUT_READING[case](np.asarray)
        np.testing.assert_array_equal(found, [0.0, -2.0, 2.25, 3.5, -1.0, 0.0])


def test_a_check_that_cannot_read_lets_values_pass_and_still_sees_shapes() -> None:
    register_backend("numpy", Blind())
    nan, ids = np.asarray([np.nan, 1.0]), np.asarray([0, 1])
    with np.errstate(all="ignore"):
        gspo.group_advantages(nan, ids, valid=np.asarray([3, 1]))
        gspo.clip_rewards(nan, 0.0, 1.0)
        gspo.aggregate(nan[None], np.full((1, 2), 5), normalizer=np.asarray(-1.0))
        gspo.sequence_ratio(nan, nan, gspo.Packed(np.asarray([1, 2, 2]), max_length=0))
    with pytest.raises(ValueError, match=r"^groups: expected shape"):
        gspo.group_advantages(nan, ids[:1])


def test_what_may_be_read_is_read_for_speed_alone() -> None:
    """The longest segment and sorted ids save work where they are seen."""
    reach, ids = np.asarray([[0, 1, 2], [-3, 0, 1]]), np.asarray([-1, 4, 4, 9])
    assert longest_segment(reach, 99) == 3
    assert index_groups(ids).order is None
    assert index_groups(ids[::-1]).order is not None
    packed = gspo.Packed(np.asarray([0, 2, 3, 7]))
    assert packed.bind((9,)).max_length == 4
    register_backend("numpy", Blind())
    assert packed.bind((9,)).max_length == 9
    assert longest_segment(reach, 99) == 99
    assert index_groups(ids).order is not None


def test_what_responses_share_is_varied_before_each_rank_goes_its_own_way() -> None:
    """Whatever is laid back on tokens passes through `vary`, so that autograd adds what the ranks make of it."""
    groups = list[Any]()

    class Varying(Backend):
        def vary(self, values: Any, group: Any) -> Any:
            groups.append(group)
            return values

        def all_reduce_sum(self, values: Any, group: Any) -> Any:
            return values

    register_backend("numpy", Varying())
    mask = gspo.Padded(np.ones((2, 3), bool), context="a group")
    gspo.gspo_token_ratio(np.zeros((2, 3)), np.zeros((2, 3)), mask)
    assert groups == ["a group"]


# Which backend


def test_a_backend_is_found_by_the_root_module_once_and_by_its_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, asked = Backend(), list[str]()

    def entries(*, group: str) -> Iterator[Any]:
        asked.append(group)
        yield SimpleNamespace(name="another", load=lambda: pytest.fail("another framework was loaded"))
        yield SimpleNamespace(name="array_api_strict", load=lambda: mine)

    monkeypatch.setattr(importlib.metadata, "entry_points", entries)
    assert backend_of(strict.asarray([1.0])) is mine
    assert backend_of(strict.asarray([1])) is mine
    assert asked == ["gspo_core.backends"]
    assert backend_of(np.ones(1)).name == "standard"
    assert asked == ["gspo_core.backends"], "NumPy needs no entry"


def _array_of(module: str) -> Any:
    """An array of a framework that is not installed."""
    return type("Array", (), {"__array_namespace__": lambda self, api_version=None: SimpleNamespace(__name__=module)})()


def test_a_framework_without_autodiff_needs_no_entry_and_one_with_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: ())
    assert type(backend_of(_array_of("array_api_compat.cupy"))) is Backend
    for root, module in (("torch", "array_api_compat.torch"), ("jax", "jax.numpy")):
        told = rf"^{root}: expected a backend in the entry-point group 'gspo_core\.backends', found none; .*gspo\[{root}\]'$"
        with pytest.raises(ImportError, match=told):
            backend_of(_array_of(module))
        mine = Backend()
        register_backend(root, mine)
        assert backend_of(_array_of(module)) is mine


@pytest.mark.parametrize("given", [Backend, None, "backend"])
def test_what_is_no_backend_is_refused_where_it_is_named(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hunts the class in place of an instance, told by a method that misses an argument."""
    told = "^mine: expected an instance of gspo_core.Backend, got "
    with pytest.raises(TypeError, match=told):
        register_backend("mine", given)
    entry = SimpleNamespace(name="mine", load=lambda: given)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: (entry,))
    with pytest.raises(TypeError, match=told):
        backend_of(_array_of("mine.arrays"))


# The fallback's arithmetic


@pytest.mark.parametrize("kind", [np.asarray, strict.asarray])
def test_segments_are_summed_apart(kind: Callable[[Any], Any]) -> None:
    values, offsets = kind(np.asarray([1.0, 2.0, np.nan, 4.0, 8.0])), kind(np.asarray([0, 2, 2, 3, 4]))
    for bound in (2, 3, 5):
        found = Backend().segment_sum(values, offsets, bound)
        np.testing.assert_array_equal(np.asarray(np.from_dlpack(found)), [3.0, 0.0, np.nan, 4.0])
    for nothing in (Backend().segment_sum(values, offsets, 0), Backend().segment_sum(values[:0], offsets * 0, 3)):
        assert nothing.dtype == values.dtype
        np.testing.assert_array_equal(np.asarray(np.from_dlpack(nothing)), np.zeros(4))


@pytest.mark.parametrize("kind", [np.asarray, strict.asarray])
def test_one_long_segment_among_short_ones_needs_no_row_of_its_length_for_each(kind: Callable[[Any], Any]) -> None:
    lengths = np.asarray([1, 0, 3, 20_000, *[2] * 200, 0])
    offsets = np.append(0, np.cumsum(lengths))
    values = np.random.default_rng(0).normal(size=offsets[-1] + 5)
    values[[1, 20_010, -1]] = np.nan, np.inf, np.nan
    tracemalloc.start()
    found = Backend().segment_sum(kind(values), kind(offsets), 20_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30 * values.nbytes
    due = [math.fsum(values[a:b]) for a, b in itertools.pairwise(offsets)]
    np.testing.assert_allclose(np.asarray(np.from_dlpack(found)), due, rtol=1e-12)


def test_finite_where_it_matters() -> None:
    plain, values = Backend(), np.asarray([1.0, np.nan, np.inf])
    assert not plain.all_finite(values)
    assert plain.all_finite(values[:1])
    assert plain.all_finite(values, np.asarray([True, False, False]))
    assert not plain.all_finite(values, np.asarray([True, False, True]))
    assert type(plain.all_finite(values)) is bool
    np.testing.assert_array_equal(plain.select(values, np.asarray([True, False, False])), [1.0, 0.0, 0.0])
