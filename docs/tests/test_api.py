"""The API page: every public name of the four packages has one line of its own, and nothing else has."""

from __future__ import annotations

import re
from collections import Counter
from types import ModuleType

import pytest

import gspo_conformance
import gspo_core
import gspo_jax
import gspo_torch

from .served import ROOT

LINES = Counter(re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE))


def own(package: ModuleType) -> set[str]:
    """The public names that are not merely the core's under another roof, or wrapped as they are."""
    if package is gspo_core:
        return set(package.__all__)
    found = {name: getattr(package, name) for name in package.__all__}
    cores = [getattr(gspo_core, name) for name in gspo_core.__all__]
    return {name for name, one in found.items() if one not in cores and getattr(one, "__wrapped__", None) not in cores}


@pytest.mark.parametrize(
    "package", [gspo_core, gspo_torch, gspo_jax, gspo_conformance], ids=lambda package: package.__name__
)
def test_every_public_name_has_one_line(package: ModuleType) -> None:
    listed = {
        name.partition(".")[2]: number for name, number in LINES.items() if name.partition(".")[0] == package.__name__
    }
    assert own(package) - set(listed) == set()
    assert [name for name, number in listed.items() if number > 1] == []
    assert [name for name in listed if name not in package.__all__] == []
