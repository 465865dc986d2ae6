"""Coverage-guided fuzzing of the parsers, for who has `pip install atheris`: what they raise besides their own errors is a find.

python conformance/tests/fuzz/parsers.py -max_total_time=600 [CORPUS]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["gspo_conformance"]):
    from gspo_conformance.audit.shards import Broken, read_shard
    from gspo_conformance.formats import read_vector
    from gspo_conformance.lint.configuration import read_configuration
    from gspo_conformance.protocol import ProtocolError, decode, read_case, read_hello, read_reply
    from gspo_conformance.reports.reading import read
    from gspo_conformance.tensors import read_tensors
    from gspo_conformance.words import UsageError

FOLDER = Path(tempfile.mkdtemp())
FILES: tuple[tuple[str, Callable[[Path], object]], ...] = (
    ("x.json", read_vector),
    ("x.jsonl", read),
    ("x.safetensors", read_shard),
    ("y.safetensors", read_tensors),
    ("c.yaml", lambda path: read_configuration([str(path)])),
    ("c.json", lambda path: read_configuration([str(path)])),
    ("c.toml", lambda path: read_configuration([str(path)])),
    ("c.py", lambda path: read_configuration([str(path)])),
    ("c.sh", lambda path: read_configuration([str(path)])),
)
LINES = (read_hello, read_reply, read_case)


def one(content: bytes) -> None:
    """The first byte chooses the parser, the rest is what it reads."""
    if not content:
        return
    which, rest = content[0] % (len(FILES) + len(LINES)), content[1:]
    try:
        if which < len(LINES):
            LINES[which](decode(rest))
        else:
            name, reader = FILES[which - len(LINES)]
            (FOLDER / name).write_bytes(rest)
            reader(FOLDER / name)
    except (ProtocolError, Broken, UsageError, ValueError):
        pass  # the errors that the parsers promise


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
