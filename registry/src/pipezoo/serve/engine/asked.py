"""What the engine is asked for one response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipezoo_core.sampling_params import SamplingParams

__all__ = ["Asked"]


@dataclass(slots=True, kw_only=True)
class Asked:
    """Prompts, and how they are to be answered.

    Attributes:
        prompts: their tokens.
        params: complete settings, of all of them.
        lora: name of the adapter; None takes the model as it is.
        arrival_time: when the client asked, by `time.monotonic`.
        response_id: of the response.
        error: what a prompt failed of, and all the others with it; None where none has.
    """

    prompts: Sequence[Sequence[int]]
    params: SamplingParams
    lora: str | None
    arrival_time: float
    response_id: str
    error: BaseException | None = None
