"""Attention with linear biases (ALiBi; Press et al., 2022)."""

from __future__ import annotations

__all__ = ["alibi_slopes"]


def alibi_slopes(num_heads: int, bias_max: int = 8) -> tuple[float, ...]:
    """Returns one slope per head: a geometric sequence down to `2 ** -bias_max`.

    Where the number of heads is not a power of two, the sequence of the next power is taken, every second one first,
    and cut: for 3 heads and a maximum of 8, of (2⁻², 2⁻⁴, 2⁻⁶, 2⁻⁸) the second, the fourth and the first. That is
    the order of MPT's own code.
    """
    power = 1 << (num_heads - 1).bit_length()
    slopes = [2.0 ** (-bias_max * i / power) for i in range(1, power + 1)]
    if power != num_heads:
        slopes = (slopes[1::2] + slopes[::2])[:num_heads]
    return tuple(slopes)
