"""What somebody is told of the requests that an engine answers: for metrics and traces."""

from __future__ import annotations

from typing import Protocol

from pipezoo.serve.engine.asked import Asked
from pipezoo_core.request import RequestID, TextGenerationOutput

__all__ = ["RequestObserver"]


class RequestObserver(Protocol):
    """Is told at once, in the event loop, so that it has to be quick."""

    def on_begin(self, request_id: RequestID, asked: Asked, *, num_prompt_tokens: int) -> None:
        """A request was handed to the engine: one of the prompts, which has so many tokens."""

    def on_output(self, output: TextGenerationOutput) -> None:
        """One of a request's answers went on, or ended."""

    def on_end(self, request_id: RequestID, error: BaseException | None) -> None:
        """A request is over: all its answers have ended, it failed of an error, or nobody waits for it any more."""
