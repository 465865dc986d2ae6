"""Serves a Python target over JSON lines: `python -m gspo_conformance.serve module:attribute`.

The suite starts this program for every `module:attribute`, so that a crash, a hang or an exit of the
target ends this process and not the run. What the target prints goes to stderr.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import BinaryIO

from .connection import Broken, Outputs, Reply, Skipped, describe
from .protocol import VERSION, ProtocolError, decode, encode, hello_message, read_case, reply_message
from .target import Skip, Target
from .words import HarnessError


def main() -> int:
    """Reads questions from stdin until `stop` or the end of it."""
    spec, questions, answers = sys.argv[1], sys.stdin.buffer, _claim_stdout()
    first = decode(questions.readline())
    if first.get("cmd") != "start":
        return _write(answers, {"error": {"message": "expected the message `start` first", "traceback": ""}}, 1)
    if first.get("version") != VERSION:
        told = f"version: this program speaks {VERSION}, the suite {first.get('version')!r}"
        return _write(answers, {"error": {"message": told, "traceback": ""}}, 1)
    try:
        from .resolve import load

        target = load(spec)
        hello = hello_message({"name": target.name, **target.version}, target.capabilities)
    except HarnessError as error:
        return _write(answers, {"error": {"message": str(error), "traceback": traceback.format_exc()}}, 1)
    _write(answers, hello)
    return _loop(target, questions, answers)


def _claim_stdout() -> BinaryIO:
    """The real stdout, for messages alone; prints, also those of compiled code, go to stderr."""
    stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return stream


def _loop(target: Target, questions: BinaryIO, answers: BinaryIO) -> int:
    for line in questions:
        message = decode(line)
        if message.get("cmd") == "stop":
            return 0
        _write(answers, _answer(target, message))
    return 0


def _answer(target: Target, message: dict[str, object]) -> dict[str, object]:
    seq = message.get("seq")
    reply = _reply(target, message)
    try:
        return reply_message(seq, reply)  # type: ignore[arg-type]
    except (AttributeError, TypeError, ValueError) as error:
        told = Broken(f"the answer is not a mapping of names to arrays of numbers: {describe(error)}")
        return reply_message(seq, told)  # type: ignore[arg-type]


def _reply(target: Target, message: dict[str, object]) -> Reply:
    try:
        return Outputs(target.run(read_case(message)))
    except Skip as skip:
        return Skipped(skip.reason, skip.url)
    except ProtocolError as error:
        return Broken(f"the question cannot be read: {error}")
    except Exception as error:
        return Broken(describe(error), traceback.format_exc())


def _write(stream: BinaryIO, message: dict[str, object], code: int = 0) -> int:
    stream.write(encode(message))
    stream.flush()
    return code


if __name__ == "__main__":
    sys.exit(main())
