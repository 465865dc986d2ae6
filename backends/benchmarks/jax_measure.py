"""One JAX program, measured in a process of its own: what the compiler sets aside, what the process takes, how long it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MIB = 2**20


def in_a_fresh_process(script: str, task: dict[str, Any], python: str = sys.executable) -> dict[str, Any]:
    """The answer of `script` to a task; {"error": ...} where it has none."""
    environment = os.environ | {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu")}
    command = [python, script, "--task", json.dumps(task)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])
    return {"error": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}


def measure(program: Callable[..., Any], arguments: tuple[Any, ...], rounds: int) -> dict[str, Any]:
    """Compiles once, runs once for memory and `rounds` times for time; `program` gives (loss, gradients, metrics)."""
    import jax

    jax.block_until_ready(arguments)
    start = time.perf_counter()
    compiled = jax.jit(program).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - start
    before = _reset_peak()
    loss, gradients, metrics = jax.block_until_ready(compiled(*arguments))
    peak = _status("VmHWM") - before
    del metrics
    answer = {
        "loss": float(loss),
        "norms": [float(jax.numpy.linalg.norm(part.astype("float32"))) for part in jax.tree.leaves(gradients)],
        "gradient_bytes": sum(part.nbytes for part in jax.tree.leaves(gradients)),
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "peak_bytes": peak,
        "compile_seconds": compile_seconds,
    }
    del gradients
    times = []
    for _ in range(rounds):
        begin, clock = time.perf_counter(), time.process_time()
        jax.block_until_ready(compiled(*arguments))
        times.append((time.process_time() - clock, time.perf_counter() - begin))
    return answer | {"processor_seconds": min(times)[0], "seconds": min(wall for _, wall in times)}


def machine() -> dict[str, Any]:
    """What ran this."""
    import platform

    import jax

    device = jax.devices()[0]
    name = platform.machine() if device.platform == "cpu" else device.device_kind
    return {"device": name, "cores": os.cpu_count(), "jax": jax.__version__, "load": os.getloadavg()[0]}


def check_agreement(rows: list[dict[str, Any]]) -> None:
    """Loss and norms of gradients, against the first path that ran."""
    ran = [row for row in rows if "loss" in row]
    for row in ran[1:]:
        for mine, first in zip([row["loss"], *row["norms"]], [ran[0]["loss"], *ran[0]["norms"]], strict=True):
            if abs(mine - first) > 2e-3 * abs(first) + 1e-6:
                raise SystemExit(f"{row['path']} differs from {ran[0]['path']}: {mine!r} and {first!r}")


def _reset_peak() -> int:
    """Sets the highest resident size back to the present one, and returns that."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
