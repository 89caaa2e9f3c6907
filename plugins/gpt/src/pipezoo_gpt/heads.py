"""Heads that divide the hidden size among them, as those of all these models do."""

from __future__ import annotations

from pipezoo_core.errors import UnsupportedModelError

__all__ = ["head_dim_of"]


def head_dim_of(hidden_size: int, num_heads: int) -> int:
    """Returns the numbers per head.

    Raises:
        UnsupportedModelError: the heads do not divide the hidden size.
    """
    if num_heads < 1 or hidden_size % num_heads:
        raise UnsupportedModelError(
            "the config's heads do not divide its hidden size",
            found=f"{num_heads} heads",
            allowed=f"a divisor of {hidden_size}",
        )
    return hidden_size // num_heads
