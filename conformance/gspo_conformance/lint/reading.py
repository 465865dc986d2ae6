"""A dialect's reading of settings that may be anything: an objective that the core accepts, or an error that names the setting."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from gspo_core import Objective

from ..connection import describe
from ..trainers.dialect import Dialect, Finding, Inexpressible, Reading
from ..words import UsageError, cut
from .formula import formula
from .rules import findings

_SUSPECTS = 500


def read_settings(dialect: Dialect, settings: Mapping[str, Any], version: str) -> tuple[Reading, list[Finding]]:
    """What the settings mean and what there is to say about it; a value that no setting can have is a `UsageError`."""
    try:
        return _read(dialect, settings, version)
    except (Inexpressible, UsageError):
        raise
    except Exception as error:
        culprit = _text_for_number(dialect, settings, version) or _culprit(dialect, settings, version, error)
        what = f"{cut(culprit)} = {cut(repr(settings[culprit]))}" if culprit else "these settings"
        reason = "it has no such value" if isinstance(error, KeyError) else cut(describe(error), 200)
        if culprit and isinstance(settings[culprit], str) and "format code" in reason:
            reason = "expected a number, got text"
        raise UsageError(f"{what}: {dialect.name} cannot mean that: {reason}") from None


def _read(dialect: Dialect, settings: Mapping[str, Any], version: str) -> tuple[Reading, list[Finding]]:
    reading = dialect.read(settings, version)
    Objective.from_dict(dict(reading.objective))
    found = findings(reading)
    formula(reading.objective)
    return reading, found


def _text_for_number(dialect: Dialect, settings: Mapping[str, Any], version: str) -> str:
    """The setting that is text where its default is a number, as `"3e-4"` in a program; empty where there is none."""
    usual = dialect.read({}, version).settings
    return next((key for key, value in settings.items() if isinstance(value, str) and _is_number(usual.get(key))), "")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _culprit(dialect: Dialect, settings: Mapping[str, Any], version: str, error: Exception) -> str:
    """The setting that has the value which was looked up in vain, else the one without which the others can be read; empty where there is no single one."""
    if isinstance(error, KeyError):
        having = [key for key, value in settings.items() if repr(value) == repr(error.args[0])]
        if len(having) == 1:
            return having[0]
    for name in islice(settings, _SUSPECTS):
        try:
            _read(dialect, {key: value for key, value in settings.items() if key != name}, version)
        except Inexpressible:
            return name
        except Exception:  # another setting is at fault, or one more
            continue
        return name
    return ""
