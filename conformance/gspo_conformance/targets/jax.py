"""`gspo_jax`; gradients by `jax.grad`. float64 runs under `jax.enable_x64`, float32 as JAX ships."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gspo_jax

from ..target import Case
from ..tensors import NumPyArray
from .core import Arrays, CoreTarget, cuts

# What was compiled for a shape is let go of when another shape comes, but not for every few cases.
_CASES_KEPT = 150
# One program costs what a dozen operations cost: a shape that is met no more often needs none compiled apart.
_WHOLE = 4
# Whole programs hold two megabytes each; of one shape these were used last.
_PROGRAMS_KEPT = 64


class Jax:
    """JAX arrays on the default device, operation by operation."""

    version = {"jax": jax.__version__}

    def array(self, values: NumPyArray, storage: str | None) -> jax.Array:
        """A JAX array; narrowed by NumPy, which compiles nothing for it."""
        narrow = bool(storage) and values.dtype.kind == "f"
        return jax.device_put(values.astype(jnp.dtype(storage)) if narrow else values)

    def numpy(self, values: Any) -> NumPyArray:
        """bfloat16 widened to float32, which every NumPy can hold."""
        array = np.asarray(values)
        return array.astype(np.float32) if array.dtype in (jnp.bfloat16, jnp.float16) else array

    def loss_and_gradient(self, objective: Any, arguments: Arrays) -> tuple[Any, jax.Array]:
        """`jax.value_and_grad` of `policy_loss`."""
        rest = dict(arguments)

        def loss(logp: jax.Array) -> tuple[jax.Array, Any]:
            found = gspo_jax.policy_loss(objective, logp=logp, **rest)
            return found.loss, found

        (_, found), gradient = jax.value_and_grad(loss, has_aux=True)(rest.pop("logp"))
        return found, gradient


class JaxTarget(CoreTarget):
    """The core on JAX, in the precision that the case names.

    Operation by operation, where nothing is hidden; compiled as one program where that is met again and again, and
    while a shape is new, for which every operation would have to be compiled. What may have to be refused is never compiled.
    """

    patience = 2

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._programs: dict[str, Any] = {}
        self._met: Counter[str] = Counter()
        self._shape: Any = None
        self._new = 0
        self._answered = 0
        self._lowering = Lowering()

    def run(self, case: Case) -> dict[str, Any]:
        """The outputs of the case as NumPy arrays."""
        self._let_go(case)
        with jax.enable_x64(case.dtype == "float64"), self._lowering.together():
            return super().run(case)

    def _let_go(self, case: Case) -> None:
        """Frees what was compiled for other shapes: whole programs at once, operations when many cases were answered."""
        before, self._shape = self._shape, (case.dtype, _largest(case))
        self._answered += 1
        if before == self._shape:
            return
        self._new = _WHOLE
        self._programs.clear()
        if self._answered > _CASES_KEPT:
            self._answered = 0
            jax.clear_caches()
            self._lowering = Lowering()

    def answer(self, case: Case, given: Any) -> dict[str, Any]:
        """What the case asks for, in JAX arrays."""
        if case.operation == "normalize_rewards" or not self._safe(case):
            return super().answer(case, given)
        key = _signature(case)
        self._met[key] += 1
        self._new -= 1
        if self._met[key] <= self.patience and self._new < 0 and case.operation != "step":
            return super().answer(case, given)
        program = self._programs.pop(key, None) or jax.jit(partial(super().answer, case))
        self._programs[key] = program
        if len(self._programs) > _PROGRAMS_KEPT:
            del self._programs[next(iter(self._programs))]
        return program(given)

    def _safe(self, case: Case) -> bool:
        return all(map(_ordinary, case.inputs.get("parts", [case.inputs])))


class JitTarget(JaxTarget):
    """The same with every case compiled as one program."""

    patience = 0

    def _safe(self, case: Case) -> bool:
        return True


class Lowering:
    """One MLIR context for many programs: JAX makes one for each, a megabyte and 4 ms, and keeps it with the program.

    Where a JAX makes them elsewhere, it goes on as it likes.
    """

    def __init__(self) -> None:
        try:
            self._module: Any = import_module("jax._src.interpreters.mlir")
        except ImportError:
            self._module = None
        made = getattr(self._module, "make_ir_context", None)
        self._context = None if made is None else cache(made)

    @contextmanager
    def together(self) -> Generator[None]:
        """What is compiled inside a `with` block shares the context."""
        if self._context is None:
            yield
            return
        before, self._module.make_ir_context = self._module.make_ir_context, self._context
        try:
            yield
        finally:
            self._module.make_ir_context = before


def _ordinary(inputs: Mapping[str, Any]) -> bool:
    """Whether every number is finite and the offsets, if any, cut the tokens."""
    if not all(np.isfinite(array).all() for array in inputs.values() if array.dtype.kind == "f"):
        return False
    offsets = inputs.get("offsets")
    tokens = max(array.shape[0] for array in inputs.values() if array.ndim)
    return offsets is None or cuts(offsets, tokens)


def _signature(case: Case) -> str:
    """What a compiled program depends on: everything but the numbers."""
    parts = case.inputs.get("parts", [case.inputs])
    shapes = [sorted((name, array.shape, array.dtype.name) for name, array in part.items()) for part in parts]
    return repr((case.operation, dict(case.parameters), case.dtype, case.input_dtype, shapes))


def _largest(case: Case) -> tuple[int, ...]:
    """The shape of the largest input: which operations a case shares with others."""
    parts = case.inputs.get("parts", [case.inputs])
    return max((array.shape for part in parts for array in part.values()), key=lambda shape: (prod(shape), shape))


def target() -> CoreTarget:
    """The built-in target `jax`. What tracing makes lives as long as its program: looking for garbage all the time costs a tenth."""
    gc.set_threshold(20_000, 20, 50)
    return JaxTarget("jax", Jax(), gspo_jax)


def jit_target() -> CoreTarget:
    """The built-in target `jax:jit`."""
    return JitTarget("jax:jit", Jax(), gspo_jax, traced=True)
