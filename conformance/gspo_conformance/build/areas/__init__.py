"""The recipes, one module per area (two where one would grow past a screenful)."""

from importlib import import_module

from ..recipe import Recipe

MODULES = (
    "ratio",
    "surrogate",
    "relatives",
    "families",
    "aggregation",
    "advantage",
    "sampling",
    "mask",
    "penalty",
    "correction",
    "gradient",
    "stop_gradient",
    "numerics",
    "packing",
    "distribution",
    "metrics",
    "reward",
    "pipeline",
    "witnesses",
    "edges",
)


def all_recipes() -> list[Recipe]:
    """Every recipe, by id; an id is used once."""
    recipes = sorted((recipe for name in MODULES for recipe in _module(name)), key=lambda recipe: recipe.id)
    ids = [recipe.id for recipe in recipes]
    repeated = {id_ for id_ in ids if ids.count(id_) > 1}
    if repeated:
        raise ValueError(f"recipes: expected every id once, got {', '.join(sorted(repeated))} more than once")
    return recipes


def _module(name: str) -> list[Recipe]:
    return import_module(f"{__name__}.{name}").RECIPES
