"""What somebody is told of the requests that an engine answers: for metrics and traces."""

from __future__ import annotations

from typing import Protocol

from pipezoo_core.request import RequestID, TextGenerationOutput
from pipezoo_core.sampling_params import SamplingParams

__all__ = ["RequestObserver"]


class RequestObserver(Protocol):
    """Is told at once, in the event loop, so that it has to be quick."""

    def on_begin(
        self,
        request_id: RequestID,
        *,
        num_prompt_tokens: int,
        params: SamplingParams,
        lora: str | None,
        arrival_time: float,
    ) -> None:
        """A request was handed to the engine; it arrived at a time of `time.monotonic`."""

    def on_output(self, output: TextGenerationOutput) -> None:
        """One of a request's answers went on, or ended."""

    def on_end(self, request_id: RequestID) -> None:
        """A request is over: all its answers have ended, or nobody waits for them any more."""
