r"""A grammar for answers that have to be calls, or whose calls have to follow their schemas.

It is in Lark's notation as llguidance reads it. For a Qwen model and a function f with an argument a, a call is

    call: "<tool_call>\n{\"name\": \"f\", \"arguments\": " %json {…} "}\n</tool_call>"

with token ids such as `<[151657]>` in place of the texts of special tokens, which no text can spell.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipezoo_core.chat_responses.call_form import CallForm
from pipezoo_core.chat_responses.tools import Function
from pipezoo_core.errors import InvalidGrammarError
from pipezoo_core.structured_output import JSON_WHITESPACE, check_min_properties

__all__ = ["call_grammar", "content_grammar"]

_MAX_CALLS = 8
_ANY = "/(?s:.*)/"
_LINES = r"/\n{0,2}/"


def call_grammar(
    form: CallForm,
    functions: Sequence[Function],
    *,
    has_to_call: bool,
    content_schema: str | None,
    content_begin: str,
    may_call_several: bool,
    thoughts: tuple[str, str] | None,
    is_thinking: bool,
    special_tokens: Mapping[str, int],
) -> str:
    """Returns the grammar of an answer that may have calls.

    Args:
        form: how calls are written.
        functions: what may be called.
        has_to_call: whether the answer is nothing but calls; otherwise there may be text before them, or only text.
        content_schema: the JSON schema of an answer without calls, if it has to follow one.
        content_begin: what is written before that answer.
        may_call_several: whether there may be more than one.
        thoughts: what is written before and behind the model's thoughts; None where it has none.
        is_thinking: whether the prompt itself has begun them.
        special_tokens: text -> id.

    Raises:
        InvalidGrammarError: llguidance cannot hold what a schema says.
    """
    spelled = _Speller(special_tokens).spelled
    before, middle, behind = form.around
    calls = [
        f"call_{number}: {spelled(before + function.name + middle)} arguments_{number} {spelled(behind)}\n"
        f"arguments_{number}: %json {_schema(function.parameters, f'function {function.name}')}"
        for number, function in enumerate(functions)
    ]
    most = _MAX_CALLS - 1 if may_call_several and form.between is not None else 0
    further = f" ({spelled(form.between or '')} call){{0,{most}}}" if most else ""
    rules = [
        f"calls: {spelled(form.begin)} call{further} {spelled(form.end)}",
        f"call: {' | '.join(f'call_{number}' for number in range(len(functions)))}",
        *calls,
    ]
    start = "calls"
    if not has_to_call and (content_schema is not None or content_begin):
        start = "(calls | content)"
        rules += _content(content_schema, content_begin, special_tokens)
    elif not has_to_call:
        start = "before_calls calls?"
        rules += (
            _unlike("before_calls", form.sign)
            if form.sign
            else _without("before_calls", form.begin + before, special_tokens)
        )
    return _behind_thoughts(start, rules, thoughts, is_thinking=is_thinking, special_tokens=special_tokens)


def content_grammar(
    schema: str,
    *,
    begin: str,
    thoughts: tuple[str, str] | None,
    is_thinking: bool,
    special_tokens: Mapping[str, int],
) -> str:
    """Returns the grammar of an answer that follows a schema behind the model's thoughts.

    Args:
        schema: the JSON schema.
        begin: what is written before the answer.
        thoughts: what is written before and behind the model's thoughts; None where it has none.
        is_thinking: whether the prompt itself has begun them.
        special_tokens: text -> id.

    Raises:
        InvalidGrammarError: llguidance cannot hold what the schema says.
    """
    rules = _content(schema, begin, special_tokens)
    return _behind_thoughts("content", rules, thoughts, is_thinking=is_thinking, special_tokens=special_tokens)


def _content(schema: str | None, begin: str, special_tokens: Mapping[str, int]) -> list[str]:
    spelled = _Speller(special_tokens).spelled(begin)
    if schema is None:
        return [f"content: {spelled} TEXT", f"TEXT: {_ANY}"]
    return [f"content: {spelled} %json {_schema(json.loads(schema), 'answer')}"]


def _behind_thoughts(
    start: str,
    rules: list[str],
    thoughts: tuple[str, str] | None,
    *,
    is_thinking: bool,
    special_tokens: Mapping[str, int],
) -> str:
    spelled = _Speller(special_tokens).spelled
    if thoughts is not None:
        opening, closing = thoughts
        rules = [*rules, *_without("thought", closing, special_tokens)]
        thinking = f"thought {spelled(closing)} {_LINES}"
        start = f"{thinking} {start}" if is_thinking else f"({spelled(opening)} {thinking})? {start}"
    return "\n".join([f"start: {start}", *rules])


def _without(rule: str, mark: str, special_tokens: Mapping[str, int]) -> list[str]:
    """Returns a rule for any text in which a mark does not begin; special tokens are in none."""
    mark = mark.strip()
    mark = mark.splitlines()[0] if mark else mark
    if not mark or any(mark.startswith(text) for text in special_tokens):
        return [f"{rule}: {rule.upper()}", f"{rule.upper()}: {_ANY}"]
    return _unlike(rule, f"(?s:.*){_escaped(mark)}")


def _unlike(rule: str, beginning: str) -> list[str]:
    """Returns a rule for any text that does not begin like an expression; special tokens are in none."""
    return [f"{rule}: {rule.upper()}", f"{rule.upper()}: {_ANY} & ~/{beginning}(?s:.*)/"]


def _escaped(text: str) -> str:
    return re.escape(text).replace("/", r"\/").replace('"', r"\"").replace(r"\<", "<").replace(r"\>", ">")


class _Speller:
    def __init__(self, special_tokens: Mapping[str, int]) -> None:
        self._ids = special_tokens
        ordered = sorted(special_tokens, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def spelled(self, text: str) -> str:
        """Returns a text as the grammar has it."""
        parts: list[str] = []
        place = 0
        for match in self._special.finditer(text) if self._special is not None else ():
            parts += [json.dumps(text[place : match.start()], ensure_ascii=False), f"<[{self._ids[match.group()]}]>"]
            place = match.end()
        parts.append(json.dumps(text[place:], ensure_ascii=False))
        return " ".join(part for part in parts if part != '""')


def _schema(schema: Mapping[str, Any], whose: str) -> str:
    try:
        check_min_properties(schema)
    except ValueError as error:
        raise InvalidGrammarError(f"the schema of the {whose} cannot be used", found=error) from error
    return json.dumps({**schema, "x-guidance": {"whitespace_pattern": JSON_WHITESPACE}}, ensure_ascii=False)
