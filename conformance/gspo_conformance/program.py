"""A target in a process of its own, in any language: JSON lines on stdin and stdout, stderr kept.

Whatever the program does becomes a reply: a crash, silence beyond the time limit, garbage, a line
without end. After a breakdown the runner calls `stop` and `start`, which leave nothing behind.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Mapping, Sequence

from .connection import Broken, Hello, Reply
from .protocol import (
    MAX_HELLO,
    MAX_LINE,
    ProtocolError,
    decode,
    encode,
    excerpt,
    read_hello,
    read_reply,
    run_message,
    start_message,
    stop_message,
)
from .target import Case
from .words import HarnessError, cut

START_LIMIT = 120.0
_GRACE = 2.0
_STDERR_LINES = 200
_UNREAD = 4
_LINE, _OVERSIZED, _END = "line", "oversized", "end"


class Program:
    """A connection to `words`, a command line, with `variables` added to the environment."""

    def __init__(
        self,
        name: str,
        words: Sequence[str],
        *,
        start_limit: float = START_LIMIT,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.words = list(words)
        self.variables = dict(variables or {})
        self.start_limit = start_limit
        self._process: _Process | None = None
        self._seq = 0

    def start(self) -> Hello:
        """Starts the program and shakes hands."""
        try:
            self._process = _Process(self.words, self.variables)
        except OSError as error:
            raise HarnessError(f"program {self.words[0]!r} does not start: {error.strerror or error}") from error
        self._process.send(encode(start_message()))
        kind, line = self._process.receive(self.start_limit)
        if kind != _LINE:
            raise self._refusal(self._breakdown(kind, self.start_limit))
        try:
            if len(line) > MAX_HELLO:
                raise ProtocolError(f"expected at most {MAX_HELLO} bytes, got {len(line)}")
            message = decode(line)
            if isinstance(message.get("error"), dict):
                told = message["error"].get("message", "the program does not say why it fails")
                raise HarnessError(cut(str(told), 4000))
            return read_hello(message)
        except ProtocolError as error:
            raise self._refusal(f"handshake: {error}") from error

    def ask(self, case: Case, limit: float) -> Reply:
        """Puts one case and waits for its answer."""
        if self._process is None:
            return Broken("the program is not running", fatal=True)
        stray = self._process.stray()
        if stray is not None:
            return self._broken(f"the program spoke without being asked: {excerpt(stray)}")
        self._seq += 1
        self._process.send(encode(run_message(self._seq, case)))
        kind, line = self._process.receive(limit)
        return self._reply(line) if kind == _LINE else self._broken(self._breakdown(kind, limit))

    def stop(self) -> None:
        """Asks the program to end, then makes it."""
        if self._process is not None:
            self._process.close(encode(stop_message()))
            self._process = None

    def _reply(self, line: bytes) -> Reply:
        try:
            message = decode(line)
        except ProtocolError as error:
            return self._broken(f"garbage on stdout: {error}")
        if message.get("seq") != self._seq:
            return self._broken(f"the reply has seq {message.get('seq')!r:.40}, the question had {self._seq}")
        try:
            return read_reply(message)
        except ProtocolError as error:
            return Broken(f"malformed reply: {error}", self._stderr())

    def _breakdown(self, kind: str | None, limit: float) -> str:
        if kind is None:
            return f"no answer within {limit:g} s"
        if kind == _OVERSIZED:
            return f"the program wrote a line of more than {MAX_LINE} bytes"
        return self._process.obituary() if self._process else "the program ended"

    def _broken(self, reason: str) -> Broken:
        if self._process is not None:
            self._process.broken = True
        return Broken(reason, self._stderr(), fatal=True)

    def _refusal(self, reason: str) -> HarnessError:
        self._broken(reason)
        tail = self._stderr().strip().splitlines()[-5:]
        return HarnessError("\n".join([reason, *(f"  stderr: {line}" for line in tail)]))

    def _stderr(self) -> str:
        return self._process.stderr() if self._process else ""


class _Process:
    """The operating system's side: three pipes, a thread each, so that no full pipe can hold the suite.

    A thread closes its own pipe, when it is read to its end: a child that the program let go may hold it open for long.
    """

    def __init__(self, words: list[str], variables: Mapping[str, str]) -> None:
        pipe = subprocess.PIPE
        self._popen = subprocess.Popen(
            words, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True, env={**os.environ, **variables}
        )
        self.broken = False
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._inbox: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        self._errors: deque[bytes] = deque(maxlen=_STDERR_LINES)
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._write, self._read, self._listen)]
        for thread in self._threads:
            thread.start()

    def send(self, line: bytes) -> None:
        self._outbox.put(line)

    def receive(self, limit: float) -> tuple[str | None, bytes]:
        try:
            return self._inbox.get(timeout=limit)
        except queue.Empty:
            return None, b""

    def stray(self) -> bytes | None:
        """A line that came without a question, if one did; the end of the program is left for `receive`."""
        with contextlib.suppress(queue.Empty):
            kind, line = self._inbox.get_nowait()
            if kind != _END:
                return line
            self._inbox.put((kind, line))
        return None

    def obituary(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(_GRACE)
        code = self._popen.poll()
        if code is None:
            return "the program closed its stdout"
        if code >= 0:
            return f"the program ended with exit code {code}"
        with contextlib.suppress(ValueError):
            return f"the program was killed by {signal.Signals(-code).name}"
        return f"the program was killed by signal {-code}"

    def stderr(self) -> str:
        """The last lines of stderr; those of a program that has ended are all in."""
        if self._popen.poll() is not None:
            self._threads[2].join(_GRACE)
        return b"".join(self._errors).decode("utf-8", "backslashreplace")

    def close(self, farewell: bytes) -> None:
        self.send(farewell)
        self._outbox.put(None)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(0 if self.broken else _GRACE)
        finally:  # a second Ctrl-C ends the waiting, and leaves nothing behind
            self._kill()
            self._popen.wait()
        for thread in self._threads:
            thread.join(_GRACE)

    def _kill(self) -> None:
        """The whole session of the program, so that what it started does not outlive it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self._popen.pid, signal.SIGKILL)
            else:
                self._popen.kill()

    def _write(self) -> None:
        stream = self._popen.stdin
        assert stream is not None
        with contextlib.suppress(OSError, ValueError):
            while (line := self._outbox.get()) is not None:
                stream.write(line)
                stream.flush()
        with contextlib.suppress(OSError):
            stream.close()

    def _read(self) -> None:
        stream = self._popen.stdout
        assert stream is not None
        with contextlib.suppress(ValueError, OSError), stream:
            while line := stream.readline(MAX_LINE + 1):
                if len(line) > MAX_LINE:
                    self._inbox.put((_OVERSIZED, line[:200]))
                    return
                if line.strip():
                    self._inbox.put((_LINE, line))
                if self._inbox.qsize() > _UNREAD:
                    return  # nobody asked for so much; the first of them will be found
        self._inbox.put((_END, b""))

    def _listen(self) -> None:
        stream = self._popen.stderr
        assert stream is not None
        with contextlib.suppress(ValueError, OSError), stream:
            while line := stream.readline(4096):
                self._errors.append(line)
