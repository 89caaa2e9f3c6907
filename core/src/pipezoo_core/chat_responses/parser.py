r"""An answer's text to its reasoning, content and tool calls, in whatever pieces it comes.

By a template with `<think>`, `</think>` and `<tool_call>`, for which tools are given:

    feed("<think>Rome, so")               ->  reasoning "Rome, so"
    feed(".</thi")                        ->  reasoning "."; "</thi" may begin the close
    feed('nk><tool_call>{"name": "f",')   ->  nothing: a call's name waits for its arguments
    feed('"arguments": {"a"')             ->  call 0, name "f", arguments '{"a"'
    feed(': 1}}</tool_call>')             ->  call 0, arguments ': 1}'
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pipezoo_core.chat_responses.calls import CallReader, new_reader
from pipezoo_core.chat_responses.response import ChatResponse, ResponseDelta, ToolCallDelta
from pipezoo_core.chat_responses.template import Anchor, Field, ResponseTemplate
from pipezoo_core.errors import UnsupportedTokenizerError

__all__ = ["REASONING_FIELDS", "ResponseParser"]

REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")  # the names that templates have for thoughts

_CALLS = "tool_calls"
_KEPT = 4096

Result = TypeVar("Result")


class _Text:
    """The text of a field, without the space around it where the field says so."""

    def __init__(self, field: Field) -> None:
        self._join = field.join
        self._strips = bool(field.content_args.get("strip", True))
        self._has_begun = False
        self._is_first = True
        self._held = ""

    def open(self) -> None:
        if self._join is not None and not self._is_first:
            self._held, self._has_begun = self._join, False

    def push(self, text: str) -> str:
        if self._strips and not self._has_begun:
            text = text.lstrip()
        if not text:
            return ""
        self._has_begun = True
        certain = text.rstrip() if self._strips else text
        if not certain:
            self._held += text
            return ""
        self._is_first = False
        out, self._held = self._held + certain, text[len(certain) :]
        return out


class ResponseParser:
    """Parses one answer.

    What it gives out does not depend on where the text was cut. Nothing is lost: what begins like a call and is none is
    content, its marks included; only calls behind the first are dropped, where there may be but one.

    Args:
        template: how the model marks the parts of its answers.
        prompt: the text that the answer continues. It may have opened a field, such as the reasoning.
        tools: what the model may call, a function's schema each; None leaves calls in the content.
        may_call_several: whether further calls behind the first one are given out, too.
        dropped: the special tokens, which are no content; those that are marks still are marks. None keeps them.
    """

    def __init__(
        self,
        template: ResponseTemplate,
        *,
        prompt: str = "",
        tools: Sequence[Mapping[str, Any]] | None = None,
        may_call_several: bool = True,
        dropped: Anchor | None = None,
    ) -> None:
        self._template = template
        self._fields = [field for field in template.fields if field.name != _CALLS]
        self._may_call_several = may_call_several
        self._dropped = dropped
        self._properties = _properties(tools or ())
        self._text = ""
        self._place = 0
        self._begin = 0  # of the answer, behind what the prompt has of it
        self._field = template.implicit
        self._is_explicit = False
        self._reader: CallReader | None = None
        self._raw = ""
        self._num_calls = 0
        self._is_cut = False
        self._zero_width_at = -1
        self._fresh()
        if prompt:
            self.feed(_guarded(lambda: template.behind_start(prompt)))
            self._begin = len(self._text)
            self._fresh()
        if tools is not None:  # calls in the prompt have been made before
            self._fields = [*template.fields]

    def _fresh(self) -> None:
        self._texts: dict[str, _Text] = {}
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._calls: list[ToolCallDelta] = []

    @property
    def open_field(self) -> str | None:
        """The name of the field that what comes next belongs to; None where it would be dropped."""
        field = self._field
        if self._reader is None:  # a mark at the end of the text may grow, and marks the same then
            found, _ = _guarded(lambda: self._next_mark(is_whole=True))
            if found is not None:
                kind, opened, _ = found
                field = {"close": self._template.implicit, "open": opened}.get(kind, field)
        return None if field is None else field.name

    def feed(self, text: str) -> ResponseDelta:
        """Returns what the next piece of the text makes certain.

        Raises:
            UnsupportedTokenizerError: an expression of the template takes too long.
        """
        if self._place > _KEPT:
            num_past = self._place - 1  # without the one before: `\A` matches behind it no more
            self._text, self._place, self._begin = self._text[num_past:], 1, max(0, self._begin - num_past)
            self._zero_width_at = -1
        self._text += text
        return self._advance(is_whole=False)

    def finish(self, *, is_cut: bool = True) -> ResponseDelta:
        """Returns the rest, because the answer has ended.

        Args:
            is_cut: whether the model may have wanted to go on. A call whose arguments have not begun has none then, and
                otherwise `{}`: the mark that ends it ends the answer, and is not in the text.
        """
        self._is_cut = is_cut
        return self._advance(is_whole=True)

    def whole(self, text: str, *, is_cut: bool = True) -> ChatResponse:
        """Returns the answer that a whole text is; `is_cut` as for `finish`."""
        return ChatResponse.joined([self.feed(text), self.finish(is_cut=is_cut)])

    def _advance(self, *, is_whole: bool) -> ResponseDelta:
        _guarded(lambda: self._steps(is_whole))
        calls = tuple(call for call in self._calls if self._may_call_several or call.index == 0)
        delta = ResponseDelta("".join(self._reasoning), "".join(self._content), calls)
        self._reasoning, self._content, self._calls = [], [], []
        return delta

    def _steps(self, is_whole: bool) -> None:
        while self._step(is_whole):
            pass

    def _step(self, is_whole: bool) -> bool:
        """Goes on to the next mark, or to the end of what is certain; returns whether there may be more to do."""
        if self._reader is not None and self._reader.wants_more():
            used, calls = self._reader.feed(self._text[self._place :])
            self._give(calls, self._text[self._place : self._place + used])
            self._place += used
            if not self._reader.wants_more():
                return True
        else:
            found, certain = self._next_mark(is_whole)
            if found is not None:
                kind, field, match = found
                self._accept(match.start())
                self._place = match.end()
                self._pass(kind, field, match)
                return True
            self._accept(certain)
            self._place = certain
        if is_whole:
            self._close("", is_cut=self._is_cut)
        return False

    def _next_mark(self, is_whole: bool) -> tuple[tuple[str, Field | None, Any] | None, int]:
        """Returns the next mark, and where the text before any begins to be uncertain."""
        best: tuple[tuple[int, bool, int, bool], tuple[str, Field | None, Any]] | None = None
        certain = len(self._text)
        for kind, field, anchor in self._watched():
            match = anchor.find(self._text, self._place, is_whole=is_whole)
            if match is None:
                continue
            if not is_whole and (match.partial or anchor.may_grow(match, self._text)):
                certain = min(certain, match.start())
                continue
            if match.start() == match.end() and (kind == "end" or match.start() == self._zero_width_at):
                continue
            key = (match.start(), kind == "drop", match.start() - match.end(), kind != "open")
            if best is None or key < best[0]:
                best = key, (kind, field, match)
        if best is None or (best[0][0] >= certain and not is_whole):
            return None, certain
        return best[1], certain

    def _watched(self) -> list[tuple[str, Field | None, Anchor]]:
        watched: list[tuple[str, Field | None, Anchor]] = []
        if self._is_explicit:
            assert self._field is not None
            if self._field.close is not None:
                watched.append(("close", self._field, self._field.close))
        else:
            watched += [("open", field, field.open) for field in self._fields if field.open is not None]
            if self._field is not None and self._field.close is not None:
                watched.append(("end", self._field, self._field.close))
        if self._dropped is not None and self._reader is None:
            watched.append(("drop", None, self._dropped))
        return watched

    def _pass(self, kind: str, field: Field | None, match: Any) -> None:
        if match.start() == match.end():
            self._zero_width_at = match.start()
        if kind == "close":
            self._close(match.group())
        elif kind == "open":
            assert field is not None
            self._field, self._is_explicit = field, True
            if field.name == _CALLS:
                captures = {name: text for name, text in match.groupdict().items() if text is not None}
                self._reader = new_reader(field, captures, self._num_calls, self._properties)
                self._raw = match.group()
            else:
                self._texts_of(field).open()

    def _close(self, mark: str, *, is_cut: bool = False) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            calls = reader.finish(is_cut=is_cut)
            self._calls += calls
            self._num_calls += reader.num_calls
            if not reader.num_calls:
                self._give_text("content", self._raw + mark)
            elif self._may_call_several or self._num_calls == reader.num_calls:
                self._give_left(reader.left.strip())
            self._raw = ""
        self._field, self._is_explicit = self._template.implicit, False

    def _give_left(self, text: str) -> None:
        """Gives out a text behind a call's JSON, as a part of the content; brackets alone are a slip of the model."""
        for field in self._fields:
            if field.name == "content" and text.strip("]} \n"):
                texts = self._texts_of(field)
                texts.open()
                self._give_text(field.name, texts.push(text))

    def _accept(self, end: int) -> None:
        text = self._text[max(self._place, self._begin) : end]
        if not text or self._field is None:
            return
        if self._reader is not None:
            self._give(self._reader.rest(text), text)
        else:
            self._give_text(self._field.name, self._texts_of(self._field).push(text))

    def _give(self, calls: Sequence[ToolCallDelta], text: str) -> None:
        assert self._reader is not None
        self._calls += calls
        self._raw = "" if self._reader.num_calls else self._raw + text

    def _give_text(self, name: str, text: str) -> None:
        if name == "content":
            self._content.append(text)
        elif name in REASONING_FIELDS:
            self._reasoning.append(text)

    def _texts_of(self, field: Field) -> _Text:
        if field.name not in self._texts:
            self._texts[field.name] = _Text(field)
        return self._texts[field.name]


def _guarded(work: Callable[[], Result]) -> Result:
    try:
        return work()
    except TimeoutError as error:
        raise UnsupportedTokenizerError("an expression of the response_template takes too long") from error


def _properties(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Returns name -> properties of the arguments, of the tools that have them."""
    found: dict[str, Mapping[str, Any]] = {}
    for tool in tools:
        function = tool.get("function", tool)
        parameters = function.get("parameters") if isinstance(function, Mapping) else None
        if isinstance(parameters, Mapping) and isinstance(properties := parameters.get("properties"), Mapping):
            found[str(function.get("name"))] = properties
    return found
