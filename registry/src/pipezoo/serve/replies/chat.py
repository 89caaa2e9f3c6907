"""The answers to a chat in the words of `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NotRequired

from typing_extensions import TypedDict

from pipezoo.serve.replies.heading import Heading
from pipezoo.serve.replies.positions import Position, PromptLogprob, positions_of, prompt_logprobs
from pipezoo.serve.replies.usage import Usage, UsageCount
from pipezoo_core.chat_responses import ResponseParser, new_call_id
from pipezoo_core.chat_responses import ToolCallDelta as CallPiece
from pipezoo_core.request import FinishReason, TextGenerationOutput

__all__ = ["ChatChunk", "ChatCompletion", "ChatReply"]


class TokenLogprob(TypedDict):
    """A token and how likely it was."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatLogprob(TokenLogprob):
    """A token of the answer, and the most likely ones in its place."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(TypedDict):
    """Those of an answer, or of a piece of it."""

    content: list[ChatLogprob]


class CalledFunction(TypedDict):
    """What is to be called; the arguments are JSON text, as far as the model wrote it well."""

    name: str
    arguments: str


class MessageToolCall(TypedDict):
    """A call that the model asks for."""

    id: str
    type: str
    function: CalledFunction


class AssistantMessage(TypedDict):
    """What the model says."""

    role: str
    content: str | None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[MessageToolCall]]


class ChatChoice(TypedDict):
    """An answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None


class ChatCompletion(TypedDict):
    """All answers to a chat."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: NotRequired[list[dict[str, PromptLogprob] | None]]


class FunctionDelta(TypedDict, total=False):
    """What is new of a call: its name once, and pieces of its arguments."""

    name: str
    arguments: str


class ToolCallDelta(TypedDict):
    """What is new of a call; its first piece has its id."""

    index: int
    id: NotRequired[str]
    type: NotRequired[str]
    function: FunctionDelta


class Delta(TypedDict, total=False):
    """What is new of a message."""

    role: str
    content: str
    reasoning_content: str
    tool_calls: list[ToolCallDelta]


class ChunkChoice(TypedDict):
    """What is new of an answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: NotRequired[str | int | None]


class ChatChunk(TypedDict):
    """What is new of the answers to a chat."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: NotRequired[Usage | None]
    prompt_logprobs: NotRequired[list[dict[str, PromptLogprob] | None]]


class ChatReply:
    """Makes a response, or the chunks of a stream, of what the engine produces.

    Args:
        heading: what all of them begin with.
        prompt: the prompt's tokens.
        new_parser: makes what reads an answer.
        num_logprobs: how many of the most likely tokens to list for each token; None where none are wanted.
        num_prompt_logprobs: the same for the prompt's tokens.
        wants_usage: whether a stream ends with the number of tokens.
    """

    def __init__(
        self,
        heading: Heading,
        prompt: Sequence[int],
        *,
        new_parser: Callable[[], ResponseParser],
        num_logprobs: int | None,
        num_prompt_logprobs: int | None,
        wants_usage: bool,
    ) -> None:
        self._heading = heading
        self._prompt = prompt
        self._num_logprobs = num_logprobs
        self._num_prompt_logprobs = num_prompt_logprobs
        self._wants_usage = wants_usage
        self._usage = UsageCount()
        self._new_parser = new_parser
        self._parsers: dict[int, ResponseParser] = {}
        self._have_calls: set[int] = set()

    def whole(self, outputs: Sequence[TextGenerationOutput]) -> ChatCompletion:
        """Returns the response of all answers, each of them whole."""
        for output in outputs:
            self._usage.add(output)
        completion: ChatCompletion = {
            "id": self._heading.id,
            "object": "chat.completion",
            "created": self._heading.created,
            "model": self._heading.model,
            "choices": [self._choice(output) for output in outputs],
            "usage": self._usage.total(),
        }
        if self._num_prompt_logprobs is not None:
            before, _ = positions_of(outputs[0], self._prompt)
            completion["prompt_logprobs"] = prompt_logprobs(before, self._num_prompt_logprobs)
        return completion

    def chunks(self, output: TextGenerationOutput) -> list[ChatChunk]:
        """Returns what a stream says of an output: who speaks, what is new of the text, and why it ended."""
        found: list[ChatChunk] = []
        before, own = positions_of(output, self._prompt)
        if output.index not in self._parsers:
            self._parsers[output.index] = self._new_parser()
            found.append(self._chunk(output, {"role": "assistant", "content": ""}))
            if self._num_prompt_logprobs is not None and output.index == 0:
                found[0]["prompt_logprobs"] = prompt_logprobs(before, self._num_prompt_logprobs)
        logprobs = self._logprobs(own)
        for delta in self._deltas(output) or ([{}] if logprobs is not None else []):
            found.append(self._chunk(output, delta, logprobs))
            logprobs = None
        if output.is_done:
            self._usage.add(output)
            end = self._chunk(output, {})
            end["choices"][0]["finish_reason"] = _finish_reason(output, output.index in self._have_calls)
            end["choices"][0]["stop_reason"] = output.stop_reason
            found.append(end)
        return found

    def _deltas(self, output: TextGenerationOutput) -> list[Delta]:
        parser = self._parsers[output.index]
        new = [parser.feed(output.text), *([parser.finish(is_cut=_is_cut(output))] if output.is_done else [])]
        found: list[Delta] = []
        for each in new:
            if each.reasoning:
                found.append({"reasoning_content": each.reasoning})
            if each.content:
                found.append({"content": each.content})
            if each.tool_calls:
                self._have_calls.add(output.index)
                found.append({"tool_calls": [_call_delta(piece) for piece in each.tool_calls]})
        return found

    def last_chunks(self) -> list[ChatChunk]:
        """Returns what comes at the end of a stream."""
        if not self._wants_usage:
            return []
        chunk = self._chunk_of([])
        chunk["usage"] = self._usage.total()
        return [chunk]

    def _choice(self, output: TextGenerationOutput) -> ChatChoice:
        _, own = positions_of(output, self._prompt)
        response = self._new_parser().whole(output.text, is_cut=_is_cut(output))
        calls = response.tool_calls
        message: AssistantMessage = {"role": "assistant", "content": response.content or (None if calls else "")}
        if response.reasoning:
            message["reasoning_content"] = response.reasoning
        if calls:
            message["tool_calls"] = [
                {
                    "id": new_call_id(),
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in calls
            ]
        return {
            "index": output.index,
            "message": message,
            "logprobs": self._logprobs(own),
            "finish_reason": _finish_reason(output, bool(calls)),
            "stop_reason": output.stop_reason,
        }

    def _chunk(self, output: TextGenerationOutput, delta: Delta, logprobs: ChatLogprobs | None = None) -> ChatChunk:
        choice: ChunkChoice = {"index": output.index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        return self._chunk_of([choice])

    def _chunk_of(self, choices: list[ChunkChoice]) -> ChatChunk:
        chunk: ChatChunk = {
            "id": self._heading.id,
            "object": "chat.completion.chunk",
            "created": self._heading.created,
            "model": self._heading.model,
            "choices": choices,
        }
        if self._wants_usage:
            chunk["usage"] = None
        return chunk

    def _logprobs(self, positions: Sequence[Position]) -> ChatLogprobs | None:
        count = self._num_logprobs
        if count is None or not positions:
            return None
        return {"content": [_with_top(position, count) for position in positions]}


def _is_cut(output: TextGenerationOutput) -> bool:
    return output.finish_reason is FinishReason.LENGTH


def _finish_reason(output: TextGenerationOutput, has_calls: bool) -> str | None:
    return "tool_calls" if has_calls and output.finish_reason == "stop" else output.finish_reason


def _call_delta(piece: CallPiece) -> ToolCallDelta:
    if piece.name is None:
        return {"index": piece.index, "function": {"arguments": piece.arguments}}
    return {
        "index": piece.index,
        "id": new_call_id(),
        "type": "function",
        "function": {"name": piece.name, "arguments": piece.arguments},
    }


def _with_top(position: Position, count: int) -> ChatLogprob:
    token = _token(position.text, position.logprob)
    top = [_token(text, value) for _, text, value in position.most_likely(count)]
    return {"token": token["token"], "logprob": token["logprob"], "bytes": token["bytes"], "top_logprobs": top}


def _token(text: str, logprob: float) -> TokenLogprob:
    is_whole = "\N{REPLACEMENT CHARACTER}" not in text  # of a part of a character its bytes are not known
    return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if is_whole else None}
