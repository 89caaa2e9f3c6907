"""What goes into a pipeline and what comes out: requests, outputs, and their status. Knows no torch."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from pipezoo_core.errors import InvalidRequestError, shown
from pipezoo_core.sampling_params import SamplingParams

__all__ = [
    "ChatMessage",
    "GenerationStatus",
    "LogProbabilities",
    "Prompt",
    "RequestID",
    "TextGenerationOutput",
    "TextGenerationRequest",
    "new_request_id",
]

RequestID: TypeAlias = str
ChatMessage: TypeAlias = Mapping[str, object]
Prompt: TypeAlias = "str | Sequence[ChatMessage] | TextGenerationRequest"

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


@dataclass(frozen=True, slots=True)
class LogProbabilities:
    """Natural-log probabilities at one step of a request, from the model's unchanged logits.

    Attributes:
        token_log_probabilities: of each token: the generated one, and with echo, before it, the prompt's tokens
            from the second on (nothing comes before the first).
        top_log_probabilities: for each of these, token id -> log probability of the most likely tokens, and of the
            token itself.
    """

    token_log_probabilities: list[float]
    top_log_probabilities: list[dict[int, float]]

    def followed_by(self, later: LogProbabilities) -> LogProbabilities:
        """Returns the positions of both, these first."""
        return LogProbabilities(
            self.token_log_probabilities + later.token_log_probabilities,
            self.top_log_probabilities + later.top_log_probabilities,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TextGenerationRequest:
    """One prompt and how to answer it. Exactly one of `prompt` and `messages` is given.

    Attributes:
        prompt: text that is completed as it is, or token ids.
        messages: a chat, `{"role": …, "content": …}` each; the model's chat template makes the prompt of it.
        sampling_params: None takes the pipeline's defaults.
        lora: name of the loaded adapter to answer with; None takes the model as it is.
        request_id: unique among the requests of a pipeline, 256 characters at most.

    Raises:
        InvalidRequestError: an attribute is of another kind, or the id is too long. What is in a list is checked later.
    """

    prompt: str | Sequence[int] | None = None
    messages: Sequence[ChatMessage] | None = None
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
    """

    request_id: RequestID
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    final_status: GenerationStatus = GenerationStatus.ACTIVE
    log_probabilities: list[LogProbabilities] | None = None
    error: BaseException | None = None

    @property
    def is_done(self) -> bool:
        """Whether no further output will come for the request."""
        return self.final_status.is_done

    @classmethod
    def joined(cls, pieces: Sequence[TextGenerationOutput]) -> TextGenerationOutput:
        """Joins the pieces of one request, at least one, in their order."""
        logged = [piece.log_probabilities for piece in pieces if piece.log_probabilities is not None]
        return cls(
            request_id=pieces[0].request_id,
            text="".join(piece.text for piece in pieces),
            tokens=[token for piece in pieces for token in piece.tokens],
            final_status=pieces[-1].final_status,
            log_probabilities=[entry for entries in logged for entry in entries] if logged else None,
            error=pieces[-1].error,
        )

    @classmethod
    def failed(cls, request_id: RequestID, error: BaseException, text: str = "") -> TextGenerationOutput:
        """Returns the last piece of a request that failed."""
        return cls(request_id=request_id, text=text, final_status=GenerationStatus.ERROR, error=error)
