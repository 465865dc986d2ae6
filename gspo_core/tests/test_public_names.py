"""One list of public names: `__all__`, the API page and the code say the same."""

from __future__ import annotations

import inspect
import re
from types import ModuleType

import pytest

import gspo_core
import gspo_jax
import gspo_torch

from .repository import ROOT

BACKENDS = [gspo_torch, gspo_jax]


@pytest.mark.parametrize("package", [gspo_core, *BACKENDS], ids=lambda package: package.__name__)
def test_all_is_sorted_and_real(package: ModuleType) -> None:
    assert package.__all__ == sorted(set(package.__all__))
    assert all(hasattr(package, name) for name in package.__all__)


def test_all_is_what_the_package_binds() -> None:
    bound = {
        name for name, value in vars(gspo_core).items() if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert bound - {"annotations"} == set(gspo_core.__all__)


def test_the_api_page_lists_every_name_once() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^::: gspo_core\.(\S+)$", page, flags=re.MULTILINE)
    assert sorted(listed) == gspo_core.__all__


@pytest.mark.parametrize("name", gspo_core.__all__)
def test_every_name_is_documented(name: str) -> None:
    value = getattr(gspo_core, name)
    assert len((inspect.getdoc(value) or "").split()) >= 3
    for method, member in vars(value).items() if inspect.isclass(value) else ():
        if inspect.isfunction(member) and not method.startswith("_"):
            assert inspect.getdoc(member), f"{name}.{method}"


@pytest.mark.parametrize("name", [name for name in gspo_core.__all__ if inspect.isfunction(getattr(gspo_core, name))])
def test_every_argument_is_annotated(name: str) -> None:
    signature = inspect.signature(getattr(gspo_core, name))
    untyped = [one.name for one in signature.parameters.values() if one.annotation is inspect.Parameter.empty]
    assert not untyped
    assert signature.return_annotation is not inspect.Signature.empty


@pytest.mark.parametrize("package", BACKENDS, ids=lambda package: package.__name__)
def test_a_backend_re_exports_the_core(package: ModuleType) -> None:
    assert set(gspo_core.__all__) <= set(package.__all__)


@pytest.mark.parametrize("package", BACKENDS, ids=lambda package: package.__name__)
def test_the_api_page_lists_what_a_backend_adds(package: ModuleType) -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = re.findall(rf"^::: {package.__name__}\.(\S+)$", page, flags=re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(package.__all__) - set(gspo_core.__all__) - {"backend"} <= set(listed)
    assert all(hasattr(package, name.split(".")[0]) for name in listed)
