"""What a stream brings beside the answer."""

from __future__ import annotations

from pydantic import Field

from pipezoo.serve.fields.body import Body

__all__ = ["StreamOptions"]


class StreamOptions(Body):
    """What a stream brings beside the answer."""

    include_usage: bool = Field(default=False, description="Whether a last chunk, without choices, counts the tokens.")
