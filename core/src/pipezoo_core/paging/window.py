"""What a token sees of those before it. Knows no torch."""

from __future__ import annotations

__all__ = ["first_visible"]


def first_visible(position: int, sliding_window: int | None, chunk: int | None = None) -> int:
    """Returns the first position that the token at this position sees; no later token sees one before it.

    With a window of 6, the token at position 9 sees positions 4 to 9. In chunks of 4, it sees 8 and 9.

    Args:
        position: of the token in its request.
        sliding_window: how many tokens a token sees, itself included; None for all.
        chunk: how many tokens make a chunk, of which a token sees its own; None for no chunks.
    """
    first = 0 if sliding_window is None else max(0, position - sliding_window + 1)
    return first if chunk is None else max(first, position // chunk * chunk)
