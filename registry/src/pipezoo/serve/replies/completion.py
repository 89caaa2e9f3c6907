"""The answers to prompts in the words of `/v1/completions`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NotRequired

from typing_extensions import TypedDict

from pipezoo.serve.replies.heading import Heading
from pipezoo.serve.replies.positions import Position, PromptLogprob, positions_of, prompt_logprobs
from pipezoo.serve.replies.prompt_places import PromptPlaces
from pipezoo.serve.replies.usage import Usage, UsageCount
from pipezoo_core.request import GenerationStatus, TextGenerationOutput
from pipezoo_core.tokenizer import TextTokenizer
from pipezoo_core.tokenizer.detokenizer import Detokenizer

__all__ = ["Completion", "CompletionReply", "CompletionWishes", "GivenPrompt"]


class CompletionLogprobs(TypedDict):
    """By token: its text, how likely it was, the most likely ones, and where its text begins.

    Of an echoed prompt's first token, which nothing precedes, there is no probability.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    """An answer, or what is new of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None
    prompt_logprobs: NotRequired[list[dict[str, PromptLogprob] | None]]


class Completion(TypedDict):
    """All answers to the prompts, or what is new of them."""

    id: str
    object: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: NotRequired[Usage | None]


@dataclass(frozen=True, slots=True)
class GivenPrompt:
    """A prompt as the client gave it, and its tokens.

    Attributes:
        given: what the client gave.
        tokens: its tokens, without those that were cut.
        may_be_cut: whether some may have been, so that its text is that of its tokens.
    """

    given: str | Sequence[int]
    tokens: Sequence[int]
    may_be_cut: bool


@dataclass(frozen=True, slots=True)
class CompletionWishes:
    """What a client wants of its answers.

    Attributes:
        n: answers to each prompt.
        echo: whether an answer's text begins with the prompt.
        num_tokens: most tokens of an answer; where it is 0, the one that was generated is left out.
        num_logprobs: how many of the most likely tokens to list for each token; None where none are wanted.
        num_prompt_logprobs: the same for the prompt's tokens.
        skip_special_tokens: whether special tokens have no text.
        usage: whether a stream ends with the number of tokens.
    """

    n: int
    echo: bool
    num_tokens: int
    num_logprobs: int | None
    num_prompt_logprobs: int | None
    skip_special_tokens: bool
    usage: bool


class CompletionReply:
    """Makes a response, or the chunks of a stream, of what the engine produces.

    Args:
        heading: what all of them begin with.
        prompts: what is answered.
        wishes: what the client wants.
        tokenizer: of the model.
    """

    def __init__(
        self, heading: Heading, prompts: Sequence[GivenPrompt], wishes: CompletionWishes, tokenizer: TextTokenizer
    ) -> None:
        self._heading = heading
        self._prompts = prompts
        self._wishes = wishes
        self._tokenizer = tokenizer
        self._usage = UsageCount()
        self._writers: dict[tuple[int, int], _ChoiceWriter] = {}

    def whole(self, outputs: Sequence[Sequence[TextGenerationOutput]]) -> Completion:
        """Returns the response of all answers to each prompt, each of them whole."""
        choices = [self._choice(number, output) for number, answers in enumerate(outputs) for output in answers]
        completion = self._completion(choices)
        completion["usage"] = self._usage.total()
        return completion

    def chunks(self, number: int, output: TextGenerationOutput) -> list[Completion]:
        """Returns what a stream says of an output for a prompt."""
        choice = self._choice(number, output)
        if not (choice["text"] or choice["logprobs"] or choice["finish_reason"] or "prompt_logprobs" in choice):
            return []
        chunk = self._completion([choice])
        if self._wishes.usage:
            chunk["usage"] = None
        return [chunk]

    def last_chunks(self) -> list[Completion]:
        """Returns what comes at the end of a stream."""
        if not self._wishes.usage:
            return []
        chunk = self._completion([])
        chunk["usage"] = self._usage.total()
        return [chunk]

    def _completion(self, choices: list[CompletionChoice]) -> Completion:
        return {
            "id": self._heading.id,
            "object": "text_completion",
            "created": self._heading.created,
            "model": self._heading.model,
            "choices": choices,
        }

    def _choice(self, number: int, output: TextGenerationOutput) -> CompletionChoice:
        key = number, output.index
        if self._wishes.num_tokens == 0:
            output = _without_answer(output)
        if key not in self._writers:
            index = number * self._wishes.n + output.index
            self._writers[key] = _ChoiceWriter(index, self._prompts[number], self._wishes, self._tokenizer)
        if output.is_done:
            self._usage.add(output)
        return self._writers[key].choice(output)


class _ChoiceWriter:
    """Writes an answer, whole or piece by piece, and keeps where its tokens' texts begin."""

    def __init__(self, index: int, prompt: GivenPrompt, wishes: CompletionWishes, tokenizer: TextTokenizer) -> None:
        self._index = index
        self._prompt = prompt
        self._wishes = wishes
        self._tokenizer = tokenizer
        self._decode = partial(tokenizer.decode, skip_special_tokens=wishes.skip_special_tokens)
        self._length = 0
        self._has_begun = False

    @cached_property
    def _detokenizer(self) -> Detokenizer:
        return Detokenizer(self._decode, prompt_tokens=self._prompt.tokens)

    def choice(self, output: TextGenerationOutput) -> CompletionChoice:
        before, own = positions_of(output, self._prompt.tokens)
        logs = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        is_first, self._has_begun = not self._has_begun, True
        has_logs = self._wishes.num_logprobs is not None
        text = output.text
        if is_first and self._wishes.echo:
            prompt = self._prompt_text()
            text = prompt + text
            if has_logs:
                self._log_prompt(logs, prompt, before)
        if has_logs and self._wishes.num_tokens:
            self._log(logs, own, self._next_place)
        choice = CompletionChoice(
            index=self._index,
            text=text,
            logprobs=logs if logs["tokens"] else None,
            finish_reason=output.finish_reason,
            stop_reason=output.stop_reason,
        )
        if is_first and self._wishes.num_prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(before, self._wishes.num_prompt_logprobs)
        return choice

    def _prompt_text(self) -> str:
        given, tokens = self._prompt.given, self._prompt.tokens
        return given if isinstance(given, str) and not self._prompt.may_be_cut else self._decode(tokens)

    def _log_prompt(self, logs: CompletionLogprobs, text: str, positions: Sequence[Position]) -> None:
        places = PromptPlaces(text, self._tokenizer)
        first, *_ = self._prompt.tokens
        logs["tokens"].append(self._tokenizer.text_of(first))
        logs["token_logprobs"].append(None)
        logs["top_logprobs"].append(None)
        logs["text_offset"].append(places.next(first))
        self._log(logs, positions, places.next)
        self._length = len(text)

    def _next_place(self, token: int) -> int:
        """Returns where the answer's next token begins."""
        place = self._length
        self._length += len(self._detokenizer.push(token))
        return place

    def _log(self, logs: CompletionLogprobs, positions: Sequence[Position], place: Callable[[int], int]) -> None:
        count = self._wishes.num_logprobs
        assert count is not None, "log probabilities are wanted"
        for position in positions:
            logs["tokens"].append(position.text)
            logs["token_logprobs"].append(position.logprob)
            top: dict[str, float] = {}
            for _, text, value in position.most_likely(count, with_itself=True):
                top[text] = max(value, top.get(text, value))  # two tokens may have the same text
            logs["top_logprobs"].append(top)
            logs["text_offset"].append(place(position.token))


def _without_answer(output: TextGenerationOutput) -> TextGenerationOutput:
    """Returns an output as if it had ended before its only token, which has the prompt's log probabilities."""
    usage = output.usage and replace(output.usage, num_generated_tokens=0)
    status = GenerationStatus.MAXIMUM_LENGTH if output.is_done else output.final_status
    return replace(output, text="", usage=usage, final_status=status, stop_reason=None)
