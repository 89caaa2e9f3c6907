"""What goes into a pipeline and what comes out: requests, outputs, and their status. Knows no torch."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from pipezoo_core.errors import InvalidRequestError, shown
from pipezoo_core.sampling_params import SamplingParams

__all__ = [
    "ChatMessage",
    "FinishReason",
    "GenerationStatus",
    "LogProbabilities",
    "Prompt",
    "RequestID",
    "TextGenerationOutput",
    "TextGenerationRequest",
    "Timing",
    "Usage",
    "new_request_id",
]

RequestID: TypeAlias = str
"""The name of a request, by which its outputs are told apart."""

ChatMessage: TypeAlias = Mapping[str, object]
"""One message of a chat: `{"role": …, "content": …}`, and what a chat template takes besides."""

Prompt: TypeAlias = "str | Sequence[ChatMessage] | TextGenerationRequest"
"""What a pipeline answers: a text, a chat, or a request with settings of its own."""

_MAX_ID_LENGTH = 256


def new_request_id() -> RequestID:
    """Returns an id that no other request has."""
    return uuid.uuid4().hex


class GenerationStatus(enum.StrEnum):
    """Whether a request goes on, or why it ended."""

    ACTIVE = "active"
    END_OF_SEQUENCE = "end_of_sequence"
    MAXIMUM_LENGTH = "maximum_length"
    CANCELLED = "cancelled"
    ERROR = "error"

    @property
    def is_done(self) -> bool:
        """Whether no further token will come."""
        return self is not GenerationStatus.ACTIVE


class FinishReason(enum.StrEnum):
    """Why a request ended, in the words that most engines use."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


_FINISH_REASONS = {
    GenerationStatus.END_OF_SEQUENCE: FinishReason.STOP,
    GenerationStatus.MAXIMUM_LENGTH: FinishReason.LENGTH,
    GenerationStatus.CANCELLED: FinishReason.CANCELLED,
    GenerationStatus.ERROR: FinishReason.ERROR,
}


@dataclass(frozen=True, slots=True)
class Usage:
    """How many tokens a request took.

    Attributes:
        num_prompt_tokens: those of the prompt, whether they were computed or found.
        num_cached_tokens: those of the prompt that the prefix cache had when the request began.
        num_generated_tokens: those of the answer, an end or stop token included.
        num_draft_tokens: those that were fed in drafts, before it was known whether they would come.
        num_accepted_tokens: those of the drafts that came.
    """

    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a request took, in seconds since it was handed over, its tokenization included.

    Attributes:
        queue: until its first step; None where it never began.
        first_token: until its first token; None where there is none.
        total: until its end.
    """

    queue: float | None
    first_token: float | None
    total: float


@dataclass(frozen=True, slots=True)
class LogProbabilities:
    """Natural-log probabilities at one step of a request, from the model's unchanged logits.

    Attributes:
        token_log_probabilities: of each token: the generated one, and with echo, before it, the prompt's tokens
            from the second on (nothing comes before the first).
        top_log_probabilities: for each of these, token id -> log probability of the most likely tokens, the most
            likely first, and of the token itself, last where it is none of them.
        token_ranks: for each of these its place among all tokens, 1 for the most likely one; those as likely as
            another share its place. Empty where a model's own computation gives none.
        token_texts: token id -> text, of all tokens above. A part of a character is U+FFFD.
    """

    token_log_probabilities: list[float]
    top_log_probabilities: list[dict[int, float]]
    token_ranks: list[int] = field(default_factory=list)
    token_texts: dict[int, str] = field(default_factory=dict)

    def followed_by(self, later: LogProbabilities) -> LogProbabilities:
        """Returns the positions of both, these first."""
        return LogProbabilities(
            self.token_log_probabilities + later.token_log_probabilities,
            self.top_log_probabilities + later.top_log_probabilities,
            self.token_ranks + later.token_ranks,
            self.token_texts | later.token_texts,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TextGenerationRequest:
    """One prompt and how to answer it. Exactly one of `prompt` and `messages` is given.

    Attributes:
        prompt: text that is completed as it is, or token ids.
        messages: a chat, `{"role": …, "content": …}` each; the model's chat template makes the prompt of it.
        tools: what the model may call in a chat, a JSON schema each.
        chat_template_kwargs: further variables of the model's chat template, such as `enable_thinking` or `documents`.
        continue_final_message: whether the answer continues the chat's last message, and does not begin a new one.
        sampling_params: None takes the pipeline's defaults.
        lora: name of the loaded adapter to answer with; None takes the model as it is.
        request_id: unique among the requests of a pipeline, 256 characters at most.

    Raises:
        InvalidRequestError: an attribute is of another kind, or the id is too long. What is in a list is checked later.
    """

    prompt: str | Sequence[int] | None = None
    messages: Sequence[ChatMessage] | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    continue_final_message: bool = False
    sampling_params: SamplingParams | None = None
    lora: str | None = None
    request_id: RequestID = field(default_factory=new_request_id)

    def __post_init__(self) -> None:
        """Checks what later on would fail in the middle of things."""
        is_sound = {
            "prompt": self.prompt is None
            or isinstance(self.prompt, str)
            or _is_list(self.prompt)
            or getattr(self.prompt, "ndim", 0) == 1,  # an array
            "messages": self.messages is None or _is_list(self.messages),
            "tools": self.tools is None or _is_list(self.tools),
            "chat_template_kwargs": self.chat_template_kwargs is None or isinstance(self.chat_template_kwargs, Mapping),
            "continue_final_message": isinstance(self.continue_final_message, bool),
            "sampling_params": self.sampling_params is None or isinstance(self.sampling_params, SamplingParams),
            "lora": self.lora is None or isinstance(self.lora, str),
            "request_id": isinstance(self.request_id, str) and len(self.request_id) <= _MAX_ID_LENGTH,
        }
        bad = [name for name, is_fine in is_sound.items() if not is_fine]
        if bad:
            raise InvalidRequestError(f"{bad[0]!r} of a request is not valid", found=shown(getattr(self, bad[0])))


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextGenerationOutput:
    """What a request has produced: all of it from `generate`, a step's worth of it while streaming.

    Attributes:
        request_id: the request it answers.
        text: the generated text. While streaming, a piece ends on a whole character.
        tokens: the generated token ids, an end or stop token included.
        final_status: `ACTIVE` while more will come, `ERROR` where the request failed.
        error: why it failed; None where it did not.
        log_probabilities: one entry per generated token, or None where they were not asked for.
        stop_reason: the stop text, or the one of `stop_token_ids`, that ended the answer; None where the model's own
            end token, a grammar or anything else did.
        usage: how many tokens it took; None before the end, and where the request was never begun.
        timing: how long it took; None where `usage` is.
        index: which of the request's answers it is, from 0 on.
        others: the request's further answers, where `n` asked for several; not while streaming.
    """

    request_id: RequestID
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    final_status: GenerationStatus = GenerationStatus.ACTIVE
    log_probabilities: list[LogProbabilities] | None = None
    error: BaseException | None = None
    stop_reason: str | int | None = None
    usage: Usage | None = None
    timing: Timing | None = None
    index: int = 0
    others: Sequence[TextGenerationOutput] = ()

    @property
    def answers(self) -> list[TextGenerationOutput]:
        """All answers to the request, `n` of them: this one first, and then the others."""
        return [self, *self.others]

    @property
    def is_done(self) -> bool:
        """Whether no further output will come for the request."""
        return self.final_status.is_done

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the request ended: `final_status` in the words of other engines. None while more will come."""
        return _FINISH_REASONS.get(self.final_status)

    @classmethod
    def joined(cls, pieces: Sequence[TextGenerationOutput]) -> TextGenerationOutput:
        """Joins the pieces of one request, at least one, in their order."""
        if len(pieces) == 1:
            return pieces[0]
        logged = [piece.log_probabilities for piece in pieces if piece.log_probabilities is not None]
        return replace(
            pieces[-1],
            text="".join(piece.text for piece in pieces),
            tokens=[token for piece in pieces for token in piece.tokens],
            log_probabilities=[entry for entries in logged for entry in entries] if logged else None,
        )

    @classmethod
    def failed(cls, request_id: RequestID, error: BaseException, text: str = "") -> TextGenerationOutput:
        """Returns the last piece of a request that failed."""
        return cls(request_id=request_id, text=text, final_status=GenerationStatus.ERROR, error=error)
