"""What a chat talks to: a model in this process, or one that a server has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from pipezoo.cli.answer import Answer
from pipezoo_core.request import ChatMessage
from pipezoo_core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from pipezoo_core.pipeline import TextGenerationPipeline

__all__ = ["ChatModel", "LoadedModel"]


class ChatModel(Protocol):
    """Answers chats."""

    @property
    def sampling_params(self) -> SamplingParams | None:
        """The settings of answers for which nothing else is set; None where only a server knows them."""
        ...

    def answer(
        self, answer: Answer, messages: Sequence[ChatMessage], show: Callable[[str], None], **sampling: Any
    ) -> None:
        """Answers, and shows each piece of text when it is there.

        Args:
            answer: a new one, which has what came so far, whatever ends it.
            messages: the chat.
            show: called with each piece.
            sampling: settings that differ from the defaults.

        Raises:
            KeyboardInterrupt: Ctrl-C. Nothing is computed for the answer any more then.
            PipezooError: it cannot be answered.
        """
        ...


class LoadedModel:
    """A model in this process.

    Args:
        llm: answers.
        lora: name of the loaded adapter that it answers with, if any.
    """

    def __init__(self, llm: TextGenerationPipeline, *, lora: str | None) -> None:
        self._llm = llm
        self._lora = lora

    @property
    def sampling_params(self) -> SamplingParams:
        """The settings of answers for which nothing else is set."""
        return self._llm.sampling_params

    def answer(
        self, answer: Answer, messages: Sequence[ChatMessage], show: Callable[[str], None], **sampling: Any
    ) -> None:
        """Answers as `ChatModel` says."""
        answer.stream(self._llm, messages, show, lora=self._lora, **sampling)
