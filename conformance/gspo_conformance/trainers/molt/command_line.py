"""Molt's own command line, parsed and checked by its program up to the point where a run begins."""

from __future__ import annotations

import contextlib
import runpy
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import molt.utils
import numpy as np

from ..stubs import holding, names_only

names_only("molt.trainer.vllm")  # its engines ask for a release of vLLM
holding("ray", is_initialized=lambda: True)
NEEDED = {"actor.model_name_or_path": "model", "vllm.num_engines": 1, "train.agent_path": "agent"}
GROUP = {"rollout.n_samples_per_prompt": 2}


class _Parsed(Exception):
    """The arguments as the run gets them."""


def arguments(settings: Mapping[str, Any]) -> Any:
    """The real defaults with these settings over them, as its validation leaves them; what it refuses is an error."""
    words = [word for key, value in {**NEEDED, **GROUP, **settings}.items() for word in _words(key, value)]
    return _parsed(tuple(words))


@cache
def _parsed(words: tuple[str, ...]) -> Any:
    with _as_program(words), contextlib.redirect_stdout(sys.stderr):
        try:
            runpy.run_module("molt.cli.train_rl_ray", run_name="__main__")
        except _Parsed as found:
            return found.args[0]
        except SystemExit as error:
            raise ValueError(f"Molt's command line refuses {' '.join(words)}") from error
    raise RuntimeError("Molt's program ended before it made a strategy")


@contextlib.contextmanager
def _as_program(words: Sequence[str]) -> Iterator[None]:
    """These words as the program's, and a strategy that hands its arguments out."""
    before, strategy = sys.argv, molt.utils.get_strategy
    sys.argv, molt.utils.get_strategy = ["molt", *words], _hand_out
    try:
        yield
    finally:
        sys.argv, molt.utils.get_strategy = before, strategy


def _hand_out(args: Any) -> None:
    raise _Parsed(args)


def _words(key: str, value: Any) -> list[str]:
    """The flag of a setting; one that is off or has no value is left out."""
    if value is None or value is False:
        return []
    values = value if isinstance(value, (list, tuple)) else [] if value is True else [value]
    return [f"--{key}", *map(_word, values)]


def _word(value: Any) -> str:
    """A number without an exponent: behind a minus sign argparse takes one with it for a flag."""
    return np.format_float_positional(value, trim="-") if isinstance(value, float) else str(value)
