"""The program that renders chat templates, in a process of its own: a template is a stranger's program.

Reads requests and writes answers, a line of JSON each. What templates may use is what transformers gives them. The
process has little memory, and whoever started it ends it when a template takes too long; `chat_template.py` does.
Imports nothing but jinja2, so that it starts fast.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import lru_cache
from typing import Any

__all__ = ["MAX_CHARACTERS", "MAX_MEMORY", "main"]

MAX_MEMORY = 1 << 30
MAX_CHARACTERS = 1 << 24
_REASONING = ("reasoning_content", "thinking", "reasoning")  # one thing, by the names that templates know it under


def main() -> None:
    """Answers requests until there are no more."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    sys.path += sys.argv[1].split(os.pathsep)
    answers = sys.stdout
    sys.stdout = sys.stderr
    _template("")  # imports jinja2
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        answers.write(json.dumps(_answer(line)) + "\n")
        answers.flush()


def _answer(line: str) -> dict[str, str]:
    try:
        request = json.loads(line)
        variables = {**request["variables"], "messages": [_with_reasoning(m) for m in request["variables"]["messages"]]}
        return {"text": _joined(_template(request["template"]).generate(**variables))}
    except Exception as error:  # a template is the model's own code and may fail in any way
        from jinja2 import TemplateError

        return {"error": str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"}


def _joined(pieces: Iterable[str]) -> str:
    size, kept = 0, []
    for piece in pieces:
        size += len(piece)
        if size > MAX_CHARACTERS:
            raise ValueError(f"the text has more than {MAX_CHARACTERS} characters")
        kept.append(piece)
    return "".join(kept)


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    found = next((message[name] for name in _REASONING if message.get(name) is not None), None)
    return message if found is None else {"thinking": found, **message, "reasoning_content": found}


@lru_cache(maxsize=8)
def _template(text: str) -> Any:
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """`{% generation %}` marks what the assistant says, for training; here it changes nothing."""

        tags = {"generation"}  # noqa: RUF012 - jinja2's own attribute

        def parse(self, parser: Parser) -> nodes.Node:
            number = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_as_it_is"), [], [], body).set_lineno(number)

        def _as_it_is(self, caller: Callable[[], str]) -> str:
            return caller()

    class PublicNamespace(Namespace):
        def __init__(self, /, *args: Any, **values: Any) -> None:
            for name in (found := dict(*args, **values)):
                _check_public(name)
            super().__init__(found)

        def __setitem__(self, name: str, value: object) -> None:
            _check_public(name)
            super().__setitem__(name, value)

    def _check_public(name: str) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace has no attribute {name!r}")

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.globals["namespace"] = PublicNamespace
    return environment.from_string(text)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own would escape for HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


if __name__ == "__main__":
    main()
