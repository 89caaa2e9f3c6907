"""A model's chat template: messages to the text of a prompt, by a program of the model's own.

What it may do is bounded by the process that it runs in: time, memory and the size of the text. Each template has one
such process for all its requests; it starts with the first chat, and anew after it had to be ended.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipezoo_core.line_process import LineProcess, ProcessEndedError, ProcessNotStartedError
from pipezoo_core.tokenizer import template_process

__all__ = ["ChatTemplate", "ChatTemplateError"]

_SECONDS = 10.0


class ChatTemplateError(RuntimeError):
    """The template refuses its messages, is no sound template, or takes too much."""


class ChatTemplate:
    """Renders one template, a request at a time, from any thread.

    Args:
        text: the template.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        program, paths = Path(template_process.__file__), os.pathsep.join(filter(None, sys.path))
        self._process = LineProcess([sys.executable, "-I", "-S", str(program), paths])

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
        answer = json.loads(self._answer(line.encode() + b"\n"))
        if "error" in answer:
            raise ChatTemplateError(answer["error"])
        text: str = answer["text"]
        return text

    def _answer(self, line: bytes) -> bytes:
        try:
            return self._process.ask(line, seconds=_SECONDS)
        except TimeoutError as error:
            raise ChatTemplateError(f"it takes longer than {_SECONDS:g} seconds") from error
        except ProcessEndedError as error:
            memory = template_process.MAX_MEMORY >> 20
            raise ChatTemplateError(f"its process ended; it has {memory} MiB of memory") from error
        except ProcessNotStartedError as error:
            raise ChatTemplateError(f"its process does not start: {error}") from error


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    item = getattr(value, "item", None)  # a number of numpy's
    return item() if callable(item) and getattr(value, "shape", None) == () else f"<{type(value).__name__}>"
