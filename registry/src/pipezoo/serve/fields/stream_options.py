"""What a stream brings beside the answer."""

from __future__ import annotations

from pydantic import Field

from pipezoo.serve.errors import FieldError
from pipezoo.serve.fields.body import Body

__all__ = ["StreamOptions", "check_stream_options"]


class StreamOptions(Body):
    """What a stream brings beside the answer."""

    include_usage: bool = Field(default=False, description="Whether a last chunk, without choices, counts the tokens.")


def check_stream_options(options: StreamOptions | None, *, stream: bool) -> None:
    """Checks that there is a stream where something is said of it.

    Raises:
        FieldError: there is none.
    """
    if options is not None and not stream:
        raise FieldError("stream_options", "'stream_options' goes with 'stream': true", cure="Leave it out.")
