"""Several answers to one prompt: each is a request of its own, which shares the prompt's pages with the others."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain

from pipezoo_core.request import RequestID, TextGenerationOutput, TextGenerationRequest, new_request_id

__all__ = ["Answers"]

_NUM_SEEDS = 2**64


class Answers:
    """What is run for the requests of a call, and which answer of which request an output is of.

    The first answer has its request's id and seed. Each other one has an id of its own, which the caller does not see,
    and the next seed.

    Args:
        requests: with complete settings, where `n` is to count.

    Attributes:
        arrival_time: when the requests were handed over, by `time.monotonic`.
        by_prompt: for each request those of its answers, which differ in their ids and seeds alone.
    """

    def __init__(self, requests: Sequence[TextGenerationRequest]) -> None:
        self.arrival_time = time.monotonic()
        self.by_prompt = [_split(request) for request in requests]
        self._further = {
            other.request_id: (first.request_id, index)
            for first, *others in self.by_prompt
            for index, other in enumerate(others, 1)
        }

    @property
    def requests(self) -> list[TextGenerationRequest]:
        """One per answer, in the order of the requests."""
        return [*chain.from_iterable(self.by_prompt)]

    def ids_of(self, request_id: RequestID) -> list[RequestID]:
        """Returns the ids under which a request's answers run."""
        return [request_id, *(own for own, (of_request, _) in self._further.items() if of_request == request_id)]

    def named(self, outputs: Iterable[TextGenerationOutput]) -> list[TextGenerationOutput]:
        """Returns outputs with the ids of the caller's requests, and the numbers of their answers."""
        return [self._named(output) for output in outputs] if self._further else list(outputs)

    def joined(self, steps: Iterable[Sequence[TextGenerationOutput]]) -> list[TextGenerationOutput]:
        """Joins the pieces that steps yield, named, to one output per request, in the order of the requests."""
        pieces: dict[RequestID, dict[int, list[TextGenerationOutput]]] = {
            first.request_id: {} for first, *_ in self.by_prompt
        }
        for outputs in steps:
            for output in outputs:
                pieces[output.request_id].setdefault(output.index, []).append(output)
        return [_with_others(of_request) for of_request in pieces.values()]

    def _named(self, output: TextGenerationOutput) -> TextGenerationOutput:
        if output.request_id not in self._further:
            return output
        request_id, index = self._further[output.request_id]
        return replace(output, request_id=request_id, index=index)


def _split(request: TextGenerationRequest) -> list[TextGenerationRequest]:
    """Returns a request for each answer, the first one with the request's own id."""
    params = request.sampling_params
    if params is None or params.n == 1:
        return [request]
    seeds = [None if params.seed is None else (params.seed + index) % _NUM_SEEDS for index in range(params.n)]
    ids = [request.request_id, *(new_request_id() for _ in seeds[1:])]
    of_one = params.updated(n=1)
    return [
        replace(request, request_id=request_id, sampling_params=of_one.model_copy(update={"seed": seed}))
        for request_id, seed in zip(ids, seeds, strict=True)
    ]


def _with_others(pieces: dict[int, list[TextGenerationOutput]]) -> TextGenerationOutput:
    first, *others = (TextGenerationOutput.joined(pieces[index]) for index in sorted(pieces))
    return replace(first, others=tuple(others)) if others else first
