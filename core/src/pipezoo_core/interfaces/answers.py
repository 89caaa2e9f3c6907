"""Several answers to one prompt: each is a request of its own, which shares the prompt's pages with the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

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
        requests: one per answer, in the order of the requests.
    """

    def __init__(self, requests: Sequence[TextGenerationRequest]) -> None:
        self.requests: list[TextGenerationRequest] = []
        self._further: dict[RequestID, tuple[RequestID, int]] = {}
        for request in requests:
            self._add(request)

    def ids_of(self, request_id: RequestID) -> list[RequestID]:
        """Returns the ids under which a request's answers run."""
        return [request_id, *(own for own, (of_request, _) in self._further.items() if of_request == request_id)]

    def named(self, outputs: Iterable[TextGenerationOutput]) -> list[TextGenerationOutput]:
        """Returns outputs with the ids of the caller's requests, and the numbers of their answers."""
        return [self._named(output) for output in outputs] if self._further else list(outputs)

    def joined(self, steps: Iterable[Sequence[TextGenerationOutput]]) -> list[TextGenerationOutput]:
        """Joins the pieces that steps yield, named, to one output per request, in the order of the requests."""
        ids = (request.request_id for request in self.requests if request.request_id not in self._further)
        pieces: dict[RequestID, dict[int, list[TextGenerationOutput]]] = {request_id: {} for request_id in ids}
        for outputs in steps:
            for output in outputs:
                pieces[output.request_id].setdefault(output.index, []).append(output)
        return [_with_others(of_request) for of_request in pieces.values()]

    def _add(self, request: TextGenerationRequest) -> None:
        params = request.sampling_params
        if params is None or params.n == 1:
            self.requests.append(request)
            return
        for index in range(params.n):
            seed = None if params.seed is None else (params.seed + index) % _NUM_SEEDS
            request_id = new_request_id() if index else request.request_id
            self.requests.append(
                replace(request, request_id=request_id, sampling_params=params.updated(n=1, seed=seed))
            )
            if index:
                self._further[request_id] = request.request_id, index

    def _named(self, output: TextGenerationOutput) -> TextGenerationOutput:
        if output.request_id not in self._further:
            return output
        request_id, index = self._further[output.request_id]
        return replace(output, request_id=request_id, index=index)


def _with_others(pieces: dict[int, list[TextGenerationOutput]]) -> TextGenerationOutput:
    first, *others = (TextGenerationOutput.joined(pieces[index]) for index in sorted(pieces))
    return replace(first, others=tuple(others)) if others else first
