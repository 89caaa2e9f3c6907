"""Rotary position embedding (Su et al., 2021) and its extensions to longer contexts.

Formulas and defaults are those of transformers' `modeling_rope_utils`, the reference implementation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.layers.rotary_parameters import checked_rope, part_rotated, rotary_dim_of
from pipezoo_core.native import NativeKernels

__all__ = ["RotaryEmbedding", "apply_rotary", "halves"]


class RotaryEmbedding(nn.Module):
    """Computes the cosines and sines of a step's positions, once for all layers.

    Args:
        rope_parameters: `rope_type`, `rope_theta` and what the type needs, as in a transformers config.
        head_dim: numbers per head.
        max_position_embeddings: the trained length.
        rotary_dim: how many of each head's numbers are rotated, the first ones; None for `partial_rotary_factor` of
            them, which is a part of `rope_parameters` and by default 1.

    Attributes:
        rotary_dim: see there. `proportional` RoPE rotates all numbers, most of them by 0.

    Raises:
        UnsupportedModelError: the RoPE type is not one of `ROPE_TYPES`, or a number that it needs is missing or not
            positive, or gives angles that are no numbers.
    """

    inverse_frequencies: Tensor
    long_inverse_frequencies: Tensor | None

    def __init__(
        self,
        rope_parameters: Mapping[str, Any],
        head_dim: int,
        max_position_embeddings: int,
        rotary_dim: int | None = None,
    ) -> None:
        super().__init__()
        self._rope = checked_rope(rope_parameters)
        self.rotary_dim = rotary_dim_of(self._rope, head_dim) if rotary_dim is None else rotary_dim
        if self.rotary_dim % 2 or not 2 <= self.rotary_dim <= head_dim:
            raise UnsupportedModelError(
                "the numbers of a head that the model rotates are no pairs of it",
                found=self.rotary_dim,
                allowed=f"an even number from 2 to {head_dim}",
                cure="Check the model's config.json.",
            )
        self._trained_length = max_position_embeddings
        self.attention_scaling = 1.0
        rope_type = self._rope.get("rope_type", "default")
        self._is_dynamic = rope_type == "dynamic"
        if self._is_dynamic and self.rotary_dim < 4:  # its exponent is rotary_dim / (rotary_dim - 2)
            raise UnsupportedModelError("dynamic RoPE needs larger heads", found=self.rotary_dim, allowed="at least 4")
        frequencies = self._frequencies(rope_type)
        long_frequencies = self._longrope("long_factor") if rope_type == "longrope" else None
        if not (frequencies.isfinite().all() and (long_frequencies is None or long_frequencies.isfinite().all())):
            raise UnsupportedModelError(
                "the config's rope_parameters give angles that are no numbers", found=self._rope
            )
        self.register_buffer("inverse_frequencies", frequencies, persistent=False)
        self.register_buffer("long_inverse_frequencies", long_frequencies, persistent=False)
        self._kernels: NativeKernels | None = None

    def forward(self, positions: Tensor, context_lengths: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Returns cosines and sines for the rows of a step.

        Args:
            positions: [T], the position of each row in its request.
            context_lengths: [T], the length of its request; only dynamic NTK and LongRoPE look at it.
            dtype: of the result; the angles are computed in float32.

        Returns:
            Two tensors [T, rotary_dim], the second half of each row a copy of the first.
        """
        if self._kernels is not None:
            return self._kernels.rotary_angles(positions, self.inverse_frequencies, self.attention_scaling)
        angles = positions.float().unsqueeze(-1) * self._frequencies_of(context_lengths)
        angles = torch.cat((angles, angles), dim=-1)
        return (angles.cos() * self.attention_scaling).to(dtype), (angles.sin() * self.attention_scaling).to(dtype)

    def compute_with(self, kernels: NativeKernels) -> None:
        """Computes with the native kernels from now on, where all requests have the same frequencies."""
        if not self._is_dynamic and self.long_inverse_frequencies is None:
            self._kernels = kernels

    def _frequencies_of(self, context_lengths: Tensor) -> Tensor:
        """Returns the frequencies of rows whose requests have these lengths, [T or none, rotary_dim / 2].

        Unlike the reference, which goes by the longest request of a batch, each request goes by its own length, so that
        its result does not depend on its neighbours.
        """
        if self._is_dynamic:
            return self._dynamic(context_lengths)
        if self.long_inverse_frequencies is None:
            return self.inverse_frequencies
        is_long = context_lengths > self._rope["original_max_position_embeddings"]
        return torch.where(is_long.unsqueeze(-1), self.long_inverse_frequencies, self.inverse_frequencies)

    def _frequencies(self, rope_type: str) -> Tensor:
        if rope_type == "linear":  # position interpolation (Chen et al., 2023)
            return self._default() / self._rope["factor"]
        if rope_type == "llama3":
            return self._llama3()
        if rope_type == "yarn":
            return self._yarn()
        if rope_type == "longrope":
            return self._longrope("short_factor")
        if rope_type == "proportional":
            return self._proportional()
        return self._default()

    def _default(self) -> Tensor:
        return 1.0 / self._rope["rope_theta"] ** self._exponents()

    def _exponents(self) -> Tensor:
        return torch.arange(0, self.rotary_dim, 2, dtype=torch.float32, device="cpu") / self.rotary_dim

    def _dynamic(self, context_lengths: Tensor) -> Tensor:
        """A base that grows with the request's length."""
        factor, dim = self._rope["factor"], self.rotary_dim
        lengths = context_lengths.clamp(min=self._trained_length).float()
        growth = factor * lengths / self._trained_length - (factor - 1)
        base = self._rope["rope_theta"] * growth ** (dim / (dim - 2))
        return 1.0 / base.unsqueeze(-1) ** self._exponents().to(base.device)

    def _llama3(self) -> Tensor:
        """Long wavelengths are stretched, short ones kept, those between blended (Llama 3.1)."""
        rope, frequencies = self._rope, self._default()
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return frequencies * kept + frequencies / rope["factor"] * (1 - kept)

    def _longrope(self, name: str) -> Tensor:
        """A factor for each frequency, and a temperature (Ding et al., 2024).

        There are two lists of factors: for requests within the original length, and for longer ones.
        """
        rope = self._rope
        original = rope["original_max_position_embeddings"]
        factor = rope.get("factor") or self._trained_length / original
        self.attention_scaling = rope.get("attention_factor") or (
            1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
        )
        if len(rope[name]) != self.rotary_dim // 2:
            raise UnsupportedModelError(
                f"the config's rope_parameters have another number of {name!r} than the model has frequencies",
                found=len(rope[name]),
                allowed=self.rotary_dim // 2,
                cure="Check the model's config.json.",
            )
        factors = torch.tensor(rope[name], dtype=torch.float32, device="cpu")
        return 1.0 / (factors * self._rope["rope_theta"] ** self._exponents())

    def _proportional(self) -> Tensor:
        """Frequencies of whole heads, of which only the first, high ones are used (Gemma 4)."""
        frequencies = self._default() / (self._rope.get("factor") or 1.0)
        frequencies[int(part_rotated(self._rope) * self.rotary_dim // 2) :] = 0
        return frequencies

    def _yarn(self) -> Tensor:
        """NTK-by-parts with a temperature on the attention (Peng et al., 2023)."""
        rope, dim = self._rope, self.rotary_dim
        original = rope["original_max_position_embeddings"]
        factor = rope.get("factor") or self._trained_length / original
        self.attention_scaling = _yarn_scaling(rope, factor)

        def boundary(turns: float) -> float:
            return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope["rope_theta"]))

        low, high = boundary(rope.get("beta_fast") or 32), boundary(rope.get("beta_slow") or 1)
        if rope.get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = float(max(low, 0)), float(min(high, dim - 1))
        ramp = (torch.arange(dim // 2, dtype=torch.float32, device="cpu") - low) / max(high - low, 0.001)
        kept = 1 - ramp.clamp(0, 1)
        frequencies = self._default()
        return frequencies * kept + frequencies / factor * (1 - kept)


def _yarn_scaling(rope: Mapping[str, Any], factor: float) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return mscale(rope["mscale"]) / mscale(rope["mscale_all_dim"])
    return mscale(1.0)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor, head_dim: int | None = None) -> Tensor:
    """Rotates the first numbers of each head of each row, as many as there are cosines; their halves are the pairs.

    Args:
        x: [T, num_heads · head_dim].
        cos: [T, rotary_dim].
        sin: [T, rotary_dim].
        head_dim: None: rotary_dim.

    Returns:
        The shape of `x`.
    """
    rotary_dim = cos.shape[-1]
    heads_TND = x.unflatten(-1, (-1, head_dim or rotary_dim))
    rotated, kept = heads_TND[..., :rotary_dim], heads_TND[..., rotary_dim:]
    first, second = rotated.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    rotated = rotated * cos.unsqueeze(1) + turned * sin.unsqueeze(1)
    return (torch.cat((rotated, kept), dim=-1) if kept.shape[-1] else rotated).flatten(-2)


def halves(head_dim: int, rotary_dim: int | None = None) -> Callable[[Tensor], Tensor]:
    """Returns a function for q's and k's rows of a checkpoint whose pairs are neighbours, so that halves become pairs.

    Of the rotated rows r0 r0' r1 r1' … of each head it makes r0 r1 … r0' r1' …; the others stay. A rotation of
    neighbours, as in GPT-J, Cohere and GGUF's Llama, is then what `apply_rotary` computes.

    Args:
        head_dim: rows per head.
        rotary_dim: how many of them are rotated, the first ones; None for all.
    """
    size = head_dim if rotary_dim is None else rotary_dim
    order = [*range(0, size, 2), *range(1, size, 2), *range(size, head_dim)]

    def reorder(rows: Tensor) -> Tensor:
        return rows.unflatten(0, (-1, head_dim))[:, order].flatten(0, 1)

    return reorder
