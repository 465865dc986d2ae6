"""The stand-ins for a trainer's surroundings: names that are there, and no more than names."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

from gspo_conformance.trainers.stubs import compile_nothing, holding, names_only, without_init


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "modules", dict(sys.modules))


@pytest.mark.usefixtures("modules")
def test_a_module_of_names_has_classes_and_no_special_attributes() -> None:
    names_only("engine_of_nobody")
    module = import_module("engine_of_nobody")
    assert isinstance(module.Client, type)
    assert module.Client.__name__ == "Client"
    assert not hasattr(module, "__all__")


@pytest.mark.usefixtures("modules")
def test_what_lies_below_a_module_of_names_is_real(tmp_path: Path) -> None:
    (tmp_path / "package_of_nobody").mkdir()
    (tmp_path / "package_of_nobody" / "real.py").write_text("VALUE = 3\n", encoding="utf-8")
    names_only("package_of_nobody", root=str(tmp_path))
    assert import_module("package_of_nobody.real").VALUE == 3
    assert isinstance(import_module("package_of_nobody").Worker, type)


@pytest.mark.usefixtures("modules")
def test_packages_without_their_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their `__init__` never runs, their modules do, and a package is an attribute of its parent."""
    inner = tmp_path / "trainer_of_nobody" / "losses"
    inner.mkdir(parents=True)
    for folder in (inner, inner.parent):
        (folder / "__init__.py").write_text("raise RuntimeError\n", encoding="utf-8")
    (inner / "real.py").write_text("from trainer_of_nobody import losses as VALUE\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    without_init("trainer_of_nobody", "trainer_of_nobody.losses")
    assert import_module("trainer_of_nobody.losses.real").VALUE is sys.modules["trainer_of_nobody.losses"]


def test_nothing_is_compiled() -> None:
    def function() -> int:
        return 3

    assert compile_nothing(function) is function
    assert compile_nothing(dynamic=True)(function) is function


@pytest.mark.usefixtures("modules")
def test_a_package_that_is_not_installed_is_named() -> None:
    """Hunts an AttributeError of None in the place of the trainer's name."""
    with pytest.raises(ModuleNotFoundError, match="No package named 'trainer_of_nobody'"):
        without_init("trainer_of_nobody", "trainer_of_nobody.losses")


@pytest.mark.usefixtures("modules")
def test_names_are_put_into_a_module_that_is_there_or_made() -> None:
    names_only("engine_of_nobody")
    holding("engine_of_nobody", VALUE=3)
    holding("module_of_nobody", VALUE=4)
    assert import_module("engine_of_nobody").VALUE == 3
    assert isinstance(import_module("engine_of_nobody").Client, type)
    assert import_module("module_of_nobody").VALUE == 4
