"""A model's chat template: messages to the text of a prompt, by a program of the model's own.

What it may do is bounded by the process that it runs in: time, memory and the size of the text. One such process
answers all requests of a tokenizer; it starts with the first chat, and anew after it had to be ended.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipezoo_core.tokenizer import template_process

__all__ = ["ChatTemplate", "ChatTemplateError"]

_SECONDS = 10.0
_SECONDS_TO_START = 60.0


class ChatTemplateError(RuntimeError):
    """The template refuses its messages, is no sound template, or takes too much."""


class ChatTemplate:
    """Renders one template, a request at a time, from any thread.

    Args:
        text: the template.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._own()

    def render(self, variables: Mapping[str, Any]) -> str:
        """Returns the text.

        Args:
            variables: what the template is given, among it the `messages`. Of values that JSON does not know the
                template sees a name.

        Raises:
            ChatTemplateError: the template fails, or it takes too much time or memory, or makes too long a text.
        """
        try:
            line = json.dumps({"template": self._text, "variables": variables}, default=_plain)
        except (TypeError, ValueError, RecursionError) as error:
            raise ChatTemplateError(str(error)) from error
        if self._owner != os.getpid():  # a fork has its parent's process, and maybe a lock that is never released
            self._own()
        with self._lock:
            answer = json.loads(self._answer(line.encode() + b"\n"))
        if "error" in answer:
            raise ChatTemplateError(answer["error"])
        text: str = answer["text"]
        return text

    def _own(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()

    def _answer(self, line: bytes) -> bytes:
        if self._process is None or self._process.poll() is not None:
            self._process = self._started()
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(line)
            self._process.stdin.flush()
            return _read_line(self._process, _SECONDS)
        except BaseException as error:  # also an interrupt: the answer would be taken for that to the next request
            _end(self._process, self._owner)
            self._process = None
            if isinstance(error, TimeoutError):
                raise ChatTemplateError(f"it takes longer than {_SECONDS:g} seconds") from error
            if isinstance(error, OSError):
                raise ChatTemplateError(
                    f"its process ended; it has {template_process.MAX_MEMORY >> 20} MiB of memory"
                ) from error
            raise

    def _started(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(template_process.__file__)), os.pathsep.join(filter(None, sys.path))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the process that asks
        )
        weakref.finalize(self, _end, process, os.getpid())
        _read_line(process, _SECONDS_TO_START)
        return process


def _read_line(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    """Returns the next line that the process writes.

    Raises:
        TimeoutError: it does not come in time.
        ConnectionError: the process has ended.
    """
    assert process.stdout is not None
    deadline = time.monotonic() + seconds
    pieces: list[bytes] = []
    while not pieces or not pieces[-1].endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError
        piece = os.read(process.stdout.fileno(), 1 << 20)
        if not piece:
            raise ConnectionError
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


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    item = getattr(value, "item", None)  # a number of numpy's
    return item() if callable(item) and getattr(value, "shape", None) == () else f"<{type(value).__name__}>"
