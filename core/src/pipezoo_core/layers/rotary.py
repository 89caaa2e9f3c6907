"""Rotary position embedding (Su et al., 2021) and its extensions to longer contexts.

Formulas and defaults are those of transformers' `modeling_rope_utils`, the reference implementation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.native import NativeKernels

__all__ = ["ROPE_TYPES", "RotaryEmbedding", "apply_rotary", "max_rotary_length"]

_REQUIRED = {  # the numbers that the formulas of each type compute with
    "default": ("rope_theta",),
    "dynamic": ("rope_theta", "factor"),
    "linear": ("rope_theta", "factor"),
    "llama3": ("rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("rope_theta", "original_max_position_embeddings"),
}
_OPTIONAL_FOR_YARN: dict[str, tuple[object, ...]] = {  # with the values that are as good as none
    "factor": (None,),
    "attention_factor": (None,),
    "beta_fast": (None, 0),
    "beta_slow": (None, 0),
    "mscale": (None, 0),
    "mscale_all_dim": (None, 0),
}
_FLOAT32 = torch.finfo(torch.float32)

ROPE_TYPES = tuple(_REQUIRED)


class RotaryEmbedding(nn.Module):
    """Computes the cosines and sines of a step's positions, once for all layers.

    Args:
        rope_parameters: `rope_type`, `rope_theta` and what the type needs, as in a transformers config.
        head_dim: numbers per head, all of which are rotated.
        max_position_embeddings: the trained length.

    Raises:
        UnsupportedModelError: the RoPE type is not one of `ROPE_TYPES`, or a number that it needs is missing or not
            positive, or gives angles that are no numbers.
    """

    inverse_frequencies: Tensor

    def __init__(self, rope_parameters: Mapping[str, Any], head_dim: int, max_position_embeddings: int) -> None:
        super().__init__()
        self._rope = _checked(rope_parameters)
        self._head_dim = head_dim
        self._trained_length = max_position_embeddings
        self.attention_scaling = 1.0
        rope_type = self._rope.get("rope_type", "default")
        self._is_dynamic = rope_type == "dynamic"
        if self._is_dynamic and head_dim < 4:  # its exponent is head_dim / (head_dim - 2)
            raise UnsupportedModelError("dynamic RoPE needs larger heads", found=head_dim, allowed="at least 4")
        frequencies = self._frequencies(rope_type)
        if not frequencies.isfinite().all():
            raise UnsupportedModelError(
                "the config's rope_parameters give angles that are no numbers", found=self._rope
            )
        self.register_buffer("inverse_frequencies", frequencies, persistent=False)
        self._kernels: NativeKernels | None = None

    def forward(self, positions: Tensor, context_lengths: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Returns cosines and sines for the rows of a step.

        Args:
            positions: [T], the position of each row in its request.
            context_lengths: [T], the length of its request; only dynamic NTK looks at it.
            dtype: of the result; the angles are computed in float32.

        Returns:
            Two tensors [T, head_dim], the second half of each row a copy of the first.
        """
        if self._kernels is not None:
            return self._kernels.rotary_angles(positions, self.inverse_frequencies, self.attention_scaling)
        frequencies = self._dynamic(context_lengths) if self._is_dynamic else self.inverse_frequencies
        angles = positions.float().unsqueeze(-1) * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return (angles.cos() * self.attention_scaling).to(dtype), (angles.sin() * self.attention_scaling).to(dtype)

    def compute_with(self, kernels: NativeKernels) -> None:
        """Computes with the native kernels from now on, where they can: not dynamic NTK."""
        if not self._is_dynamic:
            self._kernels = kernels

    def _frequencies(self, rope_type: str) -> Tensor:
        if rope_type == "linear":  # position interpolation (Chen et al., 2023)
            return self._default() / self._rope["factor"]
        if rope_type == "llama3":
            return self._llama3()
        if rope_type == "yarn":
            return self._yarn()
        return self._default()

    def _default(self) -> Tensor:
        return 1.0 / self._rope["rope_theta"] ** self._exponents()

    def _exponents(self) -> Tensor:
        return torch.arange(0, self._head_dim, 2, dtype=torch.float32, device="cpu") / self._head_dim

    def _dynamic(self, context_lengths: Tensor) -> Tensor:
        """Frequencies per row, [T, head_dim / 2]: a base that grows with the request's length.

        Unlike the reference, which takes the longest request of a batch for all, each request goes by its own length,
        so that its result does not depend on its neighbours.
        """
        factor, dim = self._rope["factor"], self._head_dim
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

    def _yarn(self) -> Tensor:
        """NTK-by-parts with a temperature on the attention (Peng et al., 2023)."""
        rope, dim = self._rope, self._head_dim
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


def _checked(rope_parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters, those that their type computes with as floats.

    Raises:
        UnsupportedModelError: the type is unknown, or rotates a part of each head, or a number is missing or is none
            that can be computed with.
    """
    rope = dict(rope_parameters)
    rope_type = rope.get("rope_type", "default")
    if rope_type not in ROPE_TYPES:
        raise UnsupportedModelError("the model uses an unknown kind of RoPE", found=rope_type, allowed=ROPE_TYPES)
    if rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise UnsupportedModelError(
            "the model rotates only a part of each head", found=rope["partial_rotary_factor"], allowed=1.0
        )
    needed = list(_REQUIRED[rope_type])
    if rope_type == "yarn":
        needed += [name for name, as_none in _OPTIONAL_FOR_YARN.items() if rope.get(name) not in as_none]
    for name in needed:
        rope[name] = _positive(rope, name)
    if rope_type == "yarn" and rope["rope_theta"] <= 1:
        raise UnsupportedModelError("YaRN needs another rope_theta", found=rope["rope_theta"], allowed="above 1")
    return rope


def _positive(rope: Mapping[str, Any], name: str) -> float:
    if name not in rope:
        raise UnsupportedModelError(f"the config's rope_parameters lack {name!r}", found=sorted(map(str, rope)))
    value = rope[name]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and _FLOAT32.tiny <= value <= _FLOAT32.max):
        raise UnsupportedModelError(
            f"the config's rope_parameters have no positive number as {name!r}",
            found=repr(value),
            allowed="a finite number above 0",
            cure="Check the model's config.json.",
        )
    return float(value)


def _yarn_scaling(rope: Mapping[str, Any], factor: float) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return mscale(rope["mscale"]) / mscale(rope["mscale_all_dim"])
    return mscale(1.0)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates each head of each row; the halves of a head are the pairs.

    Args:
        x: [T, num_heads · head_dim].
        cos: [T, head_dim].
        sin: [T, head_dim].

    Returns:
        The shape of `x`.
    """
    heads_TND = x.unflatten(-1, (-1, cos.shape[-1]))
    first, second = heads_TND.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (heads_TND * cos.unsqueeze(1) + turned * sin.unsqueeze(1)).flatten(-2)


def max_rotary_length(rope_parameters: Mapping[str, Any], max_position_embeddings: int) -> int:
    """Returns the longest request that the positions of a model reach.

    Linear and dynamic scaling stretch the trained length by their factor. The other types' configs state the
    stretched length, except that YaRN's may state the original one.

    Raises:
        UnsupportedModelError: as `RotaryEmbedding`.
    """
    rope = _checked(rope_parameters)
    rope_type, factor = rope.get("rope_type"), rope.get("factor")
    if rope_type in ("linear", "dynamic"):
        return int(max_position_embeddings * rope["factor"])
    if rope_type == "yarn":
        return max(max_position_embeddings, int(rope["original_max_position_embeddings"] * (factor or 1.0)))
    return max_position_embeddings
