"""`Padded` and `Packed` as pytrees: arrays are leaves, `max_length` and `context` are static.

Unflattening does not validate, because JAX puts placeholders where the arrays were.
"""

from __future__ import annotations

from typing import Any

import jax

from gspo_core import Packed, Padded


def _flatten(
    sequences: Any, leaves: tuple[str, ...], static: tuple[str, ...]
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    return tuple(getattr(sequences, name) for name in leaves), tuple(getattr(sequences, name) for name in static)


def _unflatten(cls: type[Any], names: tuple[str, ...], values: tuple[Any, ...]) -> Any:
    sequences = object.__new__(cls)
    for name, value in zip(names, values, strict=True):
        object.__setattr__(sequences, name, value)
    return sequences


def _register(cls: type[Any], leaves: tuple[str, ...], static: tuple[str, ...]) -> None:
    def flatten_with_keys(sequences: Any) -> tuple[tuple[tuple[Any, Any], ...], tuple[Any, ...]]:
        children, rest = _flatten(sequences, leaves, static)
        keys = (jax.tree_util.GetAttrKey(name) for name in leaves)
        return tuple(zip(keys, children, strict=True)), rest

    jax.tree_util.register_pytree_with_keys(
        cls,
        flatten_with_keys,
        lambda rest, children: _unflatten(cls, leaves + static, (*children, *rest)),
        lambda sequences: _flatten(sequences, leaves, static),
    )


_register(Padded, ("mask",), ("context",))
_register(Packed, ("offsets", "mask"), ("max_length", "context"))
