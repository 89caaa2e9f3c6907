"""What a token sees through a sliding window. Knows no torch."""

from __future__ import annotations

__all__ = ["first_visible"]


def first_visible(position: int, sliding_window: int | None) -> int:
    """Returns the first position that the token at this position sees; no later token sees one before it.

    With a window of 6, the token at position 9 sees positions 4 to 9.

    Args:
        position: of the token in its request.
        sliding_window: how many tokens a token sees, itself included; None for all.
    """
    return 0 if sliding_window is None else max(0, position - sliding_window + 1)
