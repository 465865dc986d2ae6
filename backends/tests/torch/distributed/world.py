"""A few processes that wait for functions to run together, over gloo, started once for many checks."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

ROOT = Path(__file__).resolve().parents[4]
PATIENCE = 60.0


class World:
    """`size` ranks; `run(function, *arguments)` calls it on each and returns their results by rank."""

    def __init__(self, size: int, timeout: float = 30.0) -> None:
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(["torch", "torch.distributed._functional_collectives", "gspo_torch.distributed"])
        self._folder = tempfile.TemporaryDirectory()
        pipes = [context.Pipe() for _ in range(size)]
        self._ends = [ours for ours, _ in pipes]
        self._processes = [
            context.Process(
                target=_serve, args=(theirs, rank, size, f"{self._folder.name}/store", timeout), daemon=True
            )
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for process, (_, theirs) in zip(self._processes, pipes):
            process.start()
            theirs.close()

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        name = (_module(function), function.__name__)
        for end in self._ends:
            end.send((*name, arguments))
        answers = [self._answer(rank) for rank in range(len(self._ends))]
        failed = [f"rank {rank}:\n{text}" for rank, (text, _) in enumerate(answers) if text]
        if failed:
            raise AssertionError("\n".join(failed))
        return [value for _, value in answers]

    def _answer(self, rank: int) -> tuple[str | None, Any]:
        try:
            if self._ends[rank].poll(PATIENCE):
                return self._ends[rank].recv()
        except (EOFError, ConnectionError):
            return f"the process ended with {self._processes[rank].exitcode}", None
        return f"no answer within {PATIENCE} s", None

    def close(self) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.send(None)
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
        self._folder.cleanup()


def _serve(pipe: Connection, rank: int, size: int, store: str, timeout: float) -> None:
    import torch.distributed as dist

    sys.path.insert(0, str(ROOT))
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=timeout)
    )
    while (call := _next(pipe)) is not None:
        module, function, arguments = call
        try:
            pipe.send((None, getattr(importlib.import_module(module), function)(*arguments)))
        except Exception:
            pipe.send((traceback.format_exc(), None))
    os._exit(0)  # the ranks leave one by one: tearing down the group would wait for all


def _module(function: Callable[..., Any]) -> str:
    """The name under which every process finds the module of `function`, whatever pytest calls it."""
    path = Path(inspect.getfile(function)).resolve().relative_to(ROOT)
    return ".".join(path.with_suffix("").parts)


def _next(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        return None
