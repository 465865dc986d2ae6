"""Files written whole or not at all: under a temporary name, to the disk, then renamed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from .words import HarnessError


def write_whole(path: Path, text: str) -> None:
    """Puts `text` at `path`. Who looks sees the old file or the new one; a link at `path` is replaced, not followed.

    A full disk or a folder that cannot be written is a `HarnessError`, and what was there stays.
    """
    scratch = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".part")
        scratch = Path(name)
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.chmod(0o666 & ~_UMASK)
        scratch.replace(path)
    except OSError as error:
        raise HarnessError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        if scratch is not None:
            with contextlib.suppress(OSError):
                scratch.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _umask()
