"""The text of one answer, piece by piece, and all that is known of the answer at the end."""

from __future__ import annotations

from collections.abc import Generator, Iterator

from pipezoo_core.request import RequestID, TextGenerationOutput

__all__ = ["AnswerStream"]


class AnswerStream(Iterator[str]):
    """Yields the pieces of an answer's text, none of them empty. The request is begun with the first one.

    One that is closed, or that nobody has any more, ends its request.

    Args:
        request_id: the request that is answered.
        steps: what the request produces, errors among it.

    Attributes:
        request_id: the request that is answered; `cancel` takes it.
    """

    def __init__(self, request_id: RequestID, steps: Generator[list[TextGenerationOutput]]) -> None:
        self.request_id = request_id
        self._steps = steps
        self._pieces: list[TextGenerationOutput] = []

    @property
    def output(self) -> TextGenerationOutput:
        """The answer so far: after the last piece all of it, with its finish reason, usage and timing."""
        return TextGenerationOutput.joined(self._pieces or [TextGenerationOutput(request_id=self.request_id)])

    def __next__(self) -> str:
        """Returns the next piece.

        Raises:
            BaseException: what the request failed of; `output` has what there was.
        """
        for outputs in self._steps:
            self._pieces += outputs
            if text := "".join(output.text for output in outputs):
                return text
            self._raise_error()
        self._raise_error()
        raise StopIteration

    def close(self) -> None:
        """Ends the request; no further piece will come."""
        self._steps.close()

    def _raise_error(self) -> None:
        error = self._pieces[-1].error if self._pieces else None
        if error is not None:
            raise error
