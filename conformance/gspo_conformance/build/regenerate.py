"""Writes every vector from its recipe, or recomputes them all and says which committed file differs in a byte."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

from ..formats import VECTORS
from ..manifest import MANIFEST, manifest_text
from ..tensors import NumPyArray, canonical, tensor_bytes
from . import areas
from .areas import all_recipes
from .assemble import Assembled, assemble
from .recipe import Recipe

Progress = Callable[[int, int, str], None]
Tensors = dict[str, dict[str, NumPyArray]]


def regenerate(root: Path = VECTORS, *, progress: Progress | None = None, jobs: int = 2) -> list[str]:
    """Writes what differs, removes what no recipe makes; the paths that changed."""
    fresh = render([recipe.id for recipe in all_recipes()], progress=progress, jobs=jobs)
    fresh[MANIFEST] = manifest_text(fresh).encode("ascii")
    changed = differences(fresh, root)
    for name in changed:
        path = root / name
        if name in fresh:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(fresh[name])
        else:
            path.unlink()
    return changed


def check(root: Path = VECTORS, *, progress: Progress | None = None, jobs: int = 2) -> list[str]:
    """The paths of files that are missing, stale, or not what their recipe makes now."""
    fresh = render([recipe.id for recipe in all_recipes()], progress=progress, jobs=jobs)
    fresh[MANIFEST] = manifest_text(fresh).encode("ascii")
    return differences(fresh, root)


def differences(fresh: dict[str, bytes], root: Path) -> list[str]:
    """The paths where files and fresh bytes differ; files that no recipe makes are among them."""
    there = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    stale = {name for name in there & fresh.keys() if (root / name).read_bytes() != fresh[name]}
    return sorted(stale | (there ^ fresh.keys()))


def render(ids: Iterable[str], *, progress: Progress | None = None, jobs: int = 2) -> dict[str, bytes]:
    """The bytes of the files of these vectors, by path."""
    names = list(ids)
    files: dict[str, bytes] = {}
    tensors: Tensors = {}
    for done, (id_, made) in enumerate(_assembled(names, jobs), 1):
        files[f"{id_}.json"] = vector_text(made).encode("utf-8")
        _merge(tensors, id_.partition("/")[0], made)
        if progress is not None:
            progress(done, len(names), id_)
    return files | {name: tensor_bytes(arrays) for name, arrays in tensors.items()}


def vector_text(made: Assembled) -> str:
    """A vector as it stands in its file."""
    return canonical(made.raw) + "\n"


def _assembled(names: list[str], jobs: int) -> Iterator[tuple[str, Assembled]]:
    if jobs < 2 or len(names) < 2 * jobs:
        yield from ((name, assemble_by_id(name)) for name in names)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from zip(names, pool.imap(assemble_by_id, names, chunksize=8), strict=True)


def assemble_by_id(id_: str) -> Assembled:
    """The vector of one recipe; an error says which."""
    try:
        made = assemble(_recipes()[id_])
        json.loads(vector_text(made))
    except Exception as error:
        raise ValueError(f"{id_}: {error}") from error
    return made


@cache
def _recipes() -> dict[str, Recipe]:
    return {recipe.id: recipe for recipe in areas.all_recipes()}


def _merge(tensors: Tensors, area: str, made: Assembled) -> None:
    """Vectors may share a file of large arrays; one name means one array."""
    for file, arrays in made.tensors.items():
        shared = tensors.setdefault(f"{area}/{file}", {})
        for key, array in arrays.items():
            known = shared.setdefault(key, array)
            if known is not array and known.tobytes() != array.tobytes():
                raise ValueError(f"{area}/{file}: expected one array named {key!r}, got two")
