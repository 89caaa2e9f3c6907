"""A process that answers lines with lines: work that may crash or hang is done there, in place of the caller's process.

Knows nothing of the work. The process starts with the first question, and anew where it has ended.
"""

from __future__ import annotations

import os
import select
import subprocess
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress

__all__ = ["LineProcess", "ProcessEndedError", "ProcessNotStartedError"]

_SECONDS_TO_START = 60.0


class ProcessEndedError(RuntimeError):
    """The process ended before it had answered."""


class ProcessNotStartedError(RuntimeError):
    """The process cannot be started, or ends or hangs before it is ready."""


class LineProcess:
    """Asks one question at a time, from any thread. A forked child has a process of its own.

    Args:
        command: the program, which answers a line with a line. It writes one, too, when it is ready.
        first: the line that it gets before it is ready.
        environment: of the process; None for that of this one.
    """

    def __init__(
        self, command: Sequence[str], *, first: bytes = b"", environment: Mapping[str, str] | None = None
    ) -> None:
        self._command = command
        self._first = first
        self._environment = environment
        self._own()

    def ask(self, line: bytes, *, seconds: float | None = None) -> bytes:
        """Sends a line and returns the answer.

        Args:
            line: with its line break.
            seconds: after which the process is ended; None waits for as long as it lives.

        Raises:
            TimeoutError: the answer did not come in time.
            ProcessEndedError: there is no answer.
            ProcessNotStartedError: there is no process to ask.
        """
        if self._owner != os.getpid():  # a fork has its parent's process, and maybe a lock that is never released
            self._own()
        with self._lock:
            if self._process is not None and self._process.poll() is not None:
                self._stop()
            if self._process is None:
                self._start()
            try:
                return self._exchange(line, seconds)
            except BaseException:  # also an interrupt: the answer would be taken for that to the next question
                self._stop()
                raise

    def _own(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()

    def _start(self) -> None:
        try:
            process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the process that asks
            )
        except OSError as error:
            raise ProcessNotStartedError(str(error)) from error
        self._process = process
        self._finalizer = weakref.finalize(self, _end, process, self._owner)
        try:
            self._exchange(self._first, _SECONDS_TO_START)
        except BaseException as error:
            self._stop()
            if isinstance(error, TimeoutError | ProcessEndedError):
                raise ProcessNotStartedError(f"exit status {process.returncode}") from error
            raise

    def _stop(self) -> None:
        self._finalizer()
        self._process = None

    def _exchange(self, line: bytes, seconds: float | None) -> bytes:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise ProcessEndedError from error
        return _read_line(self._process.stdout.fileno(), seconds)


def _read_line(pipe: int, seconds: float | None) -> bytes:
    """Returns the next line that comes through a pipe, with its line break."""
    deadline = None if seconds is None else time.monotonic() + seconds
    readable = select.poll()  # unlike `select.select`, of any file, however many are open
    readable.register(pipe, select.POLLIN)
    pieces: list[bytes] = []
    while not pieces or not pieces[-1].endswith(b"\n"):
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not readable.poll(None if left is None else left * 1000):
            raise TimeoutError
        piece = os.read(pipe, 1 << 20)
        if not piece:
            raise ProcessEndedError
        pieces.append(piece)
    return b"".join(pieces)


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:
        process.returncode = 0  # not this process's to end, nor to warn of
        return
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):  # what the process did not read any more cannot be sent
            assert pipe is not None
            pipe.close()
