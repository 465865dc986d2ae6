"""Files read with a limit, and files written whole or not at all: under a temporary name, to the disk, then renamed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from .words import HarnessError, UsageError, cut


def read_text(path: Path, what: str, at_most: int) -> str:
    """The file that somebody named: a file, of no more than `at_most` bytes, in UTF-8. Else a `UsageError`."""
    shown = cut(str(path), 400)
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{shown}: expected {what}, got what is no file")
        if path.stat().st_size > at_most:
            raise UsageError(f"{shown}: expected {what} of at most {at_most} bytes")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{shown}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{shown}: expected {what}, in UTF-8") from None
    except ValueError as error:
        raise UsageError(f"{shown!r}: {error}") from None


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
