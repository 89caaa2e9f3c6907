"""The answers to a chat in the words of `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NotRequired

from typing_extensions import TypedDict

from pipezoo.serve.replies.heading import Heading
from pipezoo.serve.replies.positions import Position, PromptLogprob, positions_of, prompt_logprobs
from pipezoo.serve.replies.usage import Usage, UsageCount
from pipezoo_core.request import TextGenerationOutput

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


class AssistantMessage(TypedDict):
    """What the model says."""

    role: str
    content: str | None


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


class Delta(TypedDict, total=False):
    """What is new of a message."""

    role: str
    content: str


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
        num_logprobs: how many of the most likely tokens to list for each token; None where none are wanted.
        num_prompt_logprobs: the same for the prompt's tokens.
        wants_usage: whether a stream ends with the number of tokens.
    """

    def __init__(
        self,
        heading: Heading,
        prompt: Sequence[int],
        *,
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
        self._begun: set[int] = set()

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
        if output.index not in self._begun:
            self._begun.add(output.index)
            found.append(self._chunk(output, {"role": "assistant", "content": ""}))
            if self._num_prompt_logprobs is not None and output.index == 0:
                found[0]["prompt_logprobs"] = prompt_logprobs(before, self._num_prompt_logprobs)
        logprobs = self._logprobs(own)
        if output.text or logprobs is not None:
            found.append(self._chunk(output, {"content": output.text}, logprobs))
        if output.is_done:
            self._usage.add(output)
            end = self._chunk(output, {})
            end["choices"][0]["finish_reason"] = output.finish_reason
            end["choices"][0]["stop_reason"] = output.stop_reason
            found.append(end)
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
        return {
            "index": output.index,
            "message": {"role": "assistant", "content": output.text},
            "logprobs": self._logprobs(own),
            "finish_reason": output.finish_reason,
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


def _with_top(position: Position, count: int) -> ChatLogprob:
    token = _token(position.text, position.logprob)
    top = [_token(text, value) for _, text, value in position.most_likely(count)]
    return {"token": token["token"], "logprob": token["logprob"], "bytes": token["bytes"], "top_logprobs": top}


def _token(text: str, logprob: float) -> TokenLogprob:
    is_whole = "\N{REPLACEMENT CHARACTER}" not in text  # of a part of a character its bytes are not known
    return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if is_whole else None}
