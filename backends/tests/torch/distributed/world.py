"""A few processes that wait for functions to run together, over gloo, started once for many checks."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.multiprocessing as mp

ROOT = Path(__file__).resolve().parents[4]
PATIENCE = 60.0
PRELOAD = ["torch", "torch.distributed._functional_collectives", "torch.distributed.fsdp", "gspo_torch.distributed"]


class Answer(NamedTuple):
    """What a rank said: a value, or how it failed."""

    failure: str | None
    value: Any = None


class World:
    """`size` ranks; `run(function, *arguments)` calls it on each and returns their results by rank.

    They start at the first call, and anew after a call that failed: what is left of one after a
    failure in a collective is of no use.
    """

    def __init__(self, size: int, timeout: float = 30.0) -> None:
        self._size, self._timeout = size, timeout
        self._ends: list[Connection] = []
        self._processes: list[Any] = []
        self._folder: Any = None

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        answers = self.answers(function, *arguments)
        failed = [f"rank {rank}:\n{answer.failure}" for rank, answer in enumerate(answers) if answer.failure]
        if failed:
            raise AssertionError("\n".join(failed))
        return [answer.value for answer in answers]

    def answers(self, function: Callable[..., Any], *arguments: Any, grace: float = 2.0) -> list[Answer]:
        """Of every rank; those that are silent `grace` seconds after another failed are not waited for."""
        if not self._processes:
            self._start()
        for end in self._ends:
            end.send((_module(function), function.__name__, arguments))
        found: dict[int, Answer] = {}
        deadline = time.monotonic() + PATIENCE
        while len(found) < self._size and (left := deadline - time.monotonic()) > 0:
            for end in wait([end for rank, end in enumerate(self._ends) if rank not in found], left):
                rank = self._ends.index(end)
                found[rank] = self._receive(rank)
                if found[rank].failure:
                    deadline = min(deadline, time.monotonic() + grace)
        answers = [found.get(rank, Answer("no answer")) for rank in range(self._size)]
        if any(answer.failure for answer in answers):
            self.close()
        return answers

    def close(self) -> None:
        for end in self._ends:
            end.close()
        for process in self._processes:
            process.kill()
            process.join()
        if self._folder is not None:
            self._folder.cleanup()
        self._ends, self._processes, self._folder = [], [], None

    def _start(self) -> None:
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self._folder = tempfile.TemporaryDirectory()
        store = f"{self._folder.name}/store"
        for rank in range(self._size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, self._size, store, self._timeout), daemon=True)
            process.start()
            theirs.close()
            self._ends.append(ours)
            self._processes.append(process)

    def _receive(self, rank: int) -> Answer:
        try:
            return self._ends[rank].recv()
        except (EOFError, ConnectionError):
            self._processes[rank].join(5)
            return Answer(f"the process ended with {self._processes[rank].exitcode}")


def _serve(pipe: Connection, rank: int, size: int, store: str, timeout: float) -> None:
    import torch.distributed as dist

    sys.path.insert(0, str(ROOT))
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=timeout)
    )
    with contextlib.suppress(EOFError):
        while True:
            module, function, arguments = pipe.recv()
            pipe.send(_called(getattr(importlib.import_module(module), function), arguments))
    os._exit(0)


def _called(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Answer:
    try:
        return Answer(None, function(*arguments))
    except Exception:
        return Answer(traceback.format_exc())


def _module(function: Callable[..., Any]) -> str:
    """The name under which every process finds the module of `function`, whatever pytest calls it."""
    path = Path(inspect.getfile(function)).resolve().relative_to(ROOT)
    return ".".join(path.with_suffix("").parts)
