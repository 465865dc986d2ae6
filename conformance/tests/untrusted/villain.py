"""A program that shakes hands, and then does the worst it can: `python villain.py MODE`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(1)> ]]> -->\n  conforming\r\x1b[2J\x9b31m\u202e\ud800\x00 | `x`'
HELLO = {
    "version": 1,
    "implementation": {"name": EVIL, EVIL: EVIL},
    "capabilities": {"operations": ["policy_loss"], "dtypes": ["float32"], "gradient": True},
}


def write(content: bytes) -> None:
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def say(message: Any) -> None:
    write(json.dumps(message).encode() + b"\n")


def reply(seq: int, **fields: Any) -> None:
    say({"seq": seq} | fields)


def outputs(loss: Any) -> Callable[[int], None]:
    return lambda seq: reply(seq, outputs={"loss": loss, "gradient": loss})


def forever(chunk: bytes) -> Callable[[int], None]:
    def act(seq: int) -> None:
        while True:
            write(chunk)

    return act


def numbered(word: str) -> Callable[[int], None]:
    return lambda seq: write(f'{{"seq": {word}, "outputs": {{"loss": 0, "gradient": 0}}}}\n'.encode())


def literal(word: str) -> Callable[[int], None]:
    return lambda seq: write(f'{{"seq": {seq}, "outputs": {{"loss": {word}, "gradient": {word}}}}}\n'.encode())


def leave_a_child(seq: int) -> None:
    """A child in a session of its own keeps the pipes open after its parent is gone."""
    subprocess.Popen([sys.executable, "-S", "-E", "-c", "import time; time.sleep(3)"], start_new_session=True)
    os._exit(0)


def close_and_stay(seq: int) -> None:
    os.close(1)
    time.sleep(60)


def stop_reading(seq: int) -> None:
    os.close(0)
    time.sleep(60)


def flood_stderr(seq: int) -> None:
    for _ in range(2000):
        os.write(2, b"\x1b[31m" + b"e" * 4000)
    os._exit(3)


MODES: dict[str, Callable[[int], None]] = {
    "a line without end": forever(b"x" * 65536),
    "lines without end": forever(b'{"seq": 0}\n' * 4096),
    "empty lines without end": forever(b"\n" * 65536),
    "silence": lambda seq: time.sleep(60),
    "silence on a closed pipe": close_and_stay,
    "deaf": stop_reading,
    "gone": lambda seq: os._exit(0),
    "a child that stays": leave_a_child,
    "a flood on stderr": flood_stderr,
    "deep lists": lambda seq: write(b"[" * 100_000 + b"\n"),
    "deep objects": lambda seq: write(b'{"a":' * 100_000 + b"\n"),
    "a deep answer": lambda seq: write(b'{"seq":%d,"outputs":{"loss":' % seq + b"[" * 900 + b"]" * 900 + b"}}\n"),
    "a million lists": lambda seq: write(b"[" + b"[]," * (2**20 + 1) + b"[]]\n"),
    "half a million numbers": lambda seq: write(b"[" + b"0," * (2**19 + 1) + b"0]\n"),
    "two answers in one": lambda seq: write(b'{"seq":%d,"outputs":{"loss":0,"loss":1}}\n' % seq),
    "NaN": literal("NaN"),
    "Infinity": literal("-Infinity"),
    "a number beyond float64": literal("1e999"),
    "an integer beyond float64": literal("1" + "0" * 400),
    "an integer beyond Python": literal("9" * 5000),
    "another seq": numbered("7"),
    "a seq in words": numbered('"1"'),
    "a true seq": numbered("true"),
    "a seq with a point": numbered("1.0"),
    "no seq": lambda seq: say({"outputs": {}}),
    "bytes": lambda seq: write(bytes(range(256)) + b"\n"),
    "NUL": lambda seq: write(b"\0" * 1000 + b"\n"),
    "UTF-16": lambda seq: write('{"seq": 1}\n'.encode("utf-16")),
    "a pickle": lambda seq: write(b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR.\n"),
    "a billion numbers by their shape": outputs({"shape": [10**9], "data": [0.0]}),
    "a giant without elements": outputs({"shape": [0, 2**40], "data": []}),
    "an empty axis of any size": outputs({"shape": [0, 10**30], "data": []}),
    "an axis too many": outputs({"shape": [1] * 33, "data": [0.0]}),
    "a thousand axes": outputs({"shape": [1] * 1000, "data": [0.0]}),
    "a negative axis": outputs({"shape": [-1], "data": [0.0]}),
    "a dtype that is none": outputs({"shape": [], "data": [0.0], "dtype": "O" * 100_000}),
    "a hundred thousand numbers": outputs([0.0] * 100_000),
    "a hundred thousand names": lambda seq: reply(seq, outputs={f"n{i}": 0 for i in range(100_000)}),
    "a name without end": lambda seq: reply(seq, outputs={"n" * 1_000_000: "x"}),
    "a field without end": lambda seq: reply(seq, **{"f" * 1_000_000: {}}),
    "a message without end": lambda seq: reply(seq, error={"message": EVIL * 10_000, "traceback": EVIL * 50_000}),
    "a reason to skip without end": lambda seq: reply(seq, skipped={"reason": EVIL * 10_000, "url": EVIL * 10_000}),
    "a script for an address": lambda seq: reply(seq, skipped={"reason": EVIL, "url": "javascript:alert(1)"}),
    "markup in a message": lambda seq: reply(seq, error={"message": EVIL, "traceback": EVIL}),
    "markup in a number": outputs(EVIL),
}


def main(mode: str) -> None:
    for seq, _ in enumerate(sys.stdin.buffer):
        if seq == 0:
            say(HELLO)
        else:
            MODES[mode](seq)


if __name__ == "__main__":
    main(sys.argv[1])
