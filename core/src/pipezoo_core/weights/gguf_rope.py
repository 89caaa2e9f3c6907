"""What a GGUF file says of rotary positions, and what of it no config.json can say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipezoo_core.errors import CorruptCheckpointError, UnsupportedModelError
from pipezoo_core.layers import RotaryEmbedding

__all__ = ["YARN_KEYS", "check_rope_keys", "llama3_from_divisors", "part_of_head"]

YARN_KEYS = {
    "scaling.yarn_attn_factor": "attention_factor",
    "scaling.yarn_beta_fast": "beta_fast",
    "scaling.yarn_beta_slow": "beta_slow",
}
"""As a config.json calls them, from which converters take them."""

_ROPE_SCALINGS = ("linear", "none", "yarn")
_ROPE_KEYS = (
    "dimension_count", "freq_base", "scale_linear", "scaling.factor", "scaling.finetuned",
    "scaling.original_context_length", "scaling.type",
)  # fmt: skip
_NEUTRAL = {"scaling.attn_factor": 1, "scaling.yarn_ext_factor": 1, "scaling.yarn_log_multiplier": 0}


def part_of_head(dimension_count: Any, head_dim: int) -> float:
    """Returns what part of a head so many numbers are, such that `rotary_dim_of` makes of it the same number."""
    if type(dimension_count) is not int or not 0 < dimension_count <= head_dim:
        raise CorruptCheckpointError(
            "the GGUF file rotates more of each head than there is, or nothing",
            found=repr(dimension_count),
            allowed=f"a whole number from 1 to {head_dim}",
            cure="Convert the model again.",
        )
    part = dimension_count / head_dim
    return part if int(head_dim * part) == dimension_count else math.nextafter(part, 1)


def check_rope_keys(found: Mapping[str, Any], kind: object, prefix: str) -> None:
    """Refuses a kind of scaling, and keys below `prefix`, that are not read and not neutral."""
    if kind not in _ROPE_SCALINGS:
        raise UnsupportedModelError("the GGUF file scales RoPE in an unknown way", found=kind, allowed=_ROPE_SCALINGS)
    read = {*_ROPE_KEYS, *(YARN_KEYS if kind == "yarn" else ())}
    refused = [
        f"{prefix}{key} = {value!s:.80}"
        for key, value in found.items()
        if key not in read and not (key in _NEUTRAL and value == _NEUTRAL[key])
    ]
    if refused:
        raise UnsupportedModelError("the GGUF file has settings of RoPE that no config.json can say", found=refused)


def llama3_from_divisors(divisors: Tensor, theta: float, rotary_dim: int) -> dict[str, Any]:
    """Recognizes Llama 3.1's scaling in the divisors per frequency, which are all that a GGUF file keeps of it."""
    scaled = {
        "rope_type": "llama3",
        "factor": float(divisors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    plain = RotaryEmbedding({"rope_type": "default", "rope_theta": theta}, rotary_dim, 8192).inverse_frequencies
    guess = RotaryEmbedding({**scaled, "rope_theta": theta}, rotary_dim, 8192).inverse_frequencies
    if divisors.shape != plain.shape or not torch.allclose(plain / divisors, guess, rtol=1e-3):
        raise UnsupportedModelError(
            "the GGUF file scales RoPE by factors of its own (rope_freqs)", allowed="those of Llama 3.1"
        )
    return scaled
