"""The parameters of a rotary position embedding, checked, and the lengths that they reach.

Names, formulas and defaults are those of transformers' `modeling_rope_utils`, the reference implementation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pipezoo_core.errors import UnsupportedModelError

__all__ = [
    "ROPE_TYPES",
    "checked_rope",
    "max_rotary_length",
    "max_shareable_length",
    "part_rotated",
    "rope_of_whole_heads",
    "rotary_dim_of",
]

_REQUIRED = {  # the numbers that the formulas of each type compute with
    "default": ("rope_theta",),
    "dynamic": ("rope_theta", "factor"),
    "linear": ("rope_theta", "factor"),
    "llama3": ("rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "longrope": ("rope_theta", "original_max_position_embeddings"),
    "proportional": ("rope_theta",),
    "yarn": ("rope_theta", "original_max_position_embeddings"),
}
_OPTIONAL: dict[str, dict[str, tuple[object, ...]]] = {  # with the values that are as good as none
    "longrope": {"factor": (None,), "attention_factor": (None,)},
    "proportional": {"factor": (None,)},
    "yarn": {
        "factor": (None,),
        "attention_factor": (None,),
        "beta_fast": (None, 0),
        "beta_slow": (None, 0),
        "mscale": (None, 0),
        "mscale_all_dim": (None, 0),
    },
}
_LONGROPE_FACTORS = ("short_factor", "long_factor")
_FLOAT32 = torch.finfo(torch.float32)

ROPE_TYPES = tuple(_REQUIRED)
"""What `rope_type` of a config may be."""


def checked_rope(rope_parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters, those that their type computes with as floats.

    Raises:
        UnsupportedModelError: the type is unknown, or a number is missing or is none that can be computed with.
    """
    rope = dict(rope_parameters)
    rope_type = rope.get("rope_type", "default")
    if rope_type not in ROPE_TYPES:
        raise UnsupportedModelError("the model uses an unknown kind of RoPE", found=rope_type, allowed=ROPE_TYPES)
    optional = {"partial_rotary_factor": (None,), **_OPTIONAL.get(rope_type, {})}
    needed = [*_REQUIRED[rope_type], *(name for name, as_none in optional.items() if rope.get(name) not in as_none)]
    for name in needed:
        rope[name] = _positive(rope, name)
    if rope_type == "longrope":
        for name in _LONGROPE_FACTORS:
            rope[name] = _positives(rope, name)
        if rope["original_max_position_embeddings"] <= 1:
            raise UnsupportedModelError(
                "LongRoPE needs another original_max_position_embeddings",
                found=rope["original_max_position_embeddings"],
                allowed="above 1",
            )
    if rope_type == "yarn" and rope["rope_theta"] <= 1:
        raise UnsupportedModelError("YaRN needs another rope_theta", found=rope["rope_theta"], allowed="above 1")
    return rope


def _positives(rope: Mapping[str, Any], name: str) -> list[float]:
    if name not in rope:
        raise UnsupportedModelError(f"the config's rope_parameters lack {name!r}", found=sorted(map(str, rope)))
    if not isinstance(rope[name], list | tuple):
        raise UnsupportedModelError(
            f"the config's rope_parameters have no list of numbers as {name!r}",
            found=repr(rope[name]),
            cure="Check the model's config.json.",
        )
    return [_positive({name: number}, name) for number in rope[name]]


def part_rotated(rope: Mapping[str, Any]) -> float:
    """Returns the part of each head that is rotated, 1 for all of it."""
    part = rope.get("partial_rotary_factor")
    return 1.0 if part is None else float(part)


def rotary_dim_of(rope: Mapping[str, Any], head_dim: int) -> int:
    """Returns how many numbers of a head have a cosine and a sine. `proportional` RoPE gives all of them one."""
    return head_dim if rope.get("rope_type") == "proportional" else int(head_dim * part_rotated(rope))


def rope_of_whole_heads(rope_parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the parameters of a model that rotates all of each head.

    Raises:
        UnsupportedModelError: they say to rotate a part, which transformers' module of the model leaves unread or fails
            at. Of `proportional` RoPE it is a part of the frequencies.
    """
    part = rope_parameters.get("partial_rotary_factor")
    if part not in (None, 1) and rope_parameters.get("rope_type") != "proportional":
        raise UnsupportedModelError(
            "the config rotates a part of each head, and the model rotates heads whole", found=part
        )
    return rope_parameters


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


def max_rotary_length(rope_parameters: Mapping[str, Any], max_position_embeddings: int) -> int:
    """Returns the longest request that the positions of a model reach.

    Linear and dynamic scaling stretch the trained length by their factor. The other types' configs state the
    stretched length, except that YaRN's may state the original one.

    Raises:
        UnsupportedModelError: as `RotaryEmbedding`.
    """
    rope = checked_rope(rope_parameters)
    rope_type, factor = rope.get("rope_type"), rope.get("factor")
    if rope_type in ("linear", "dynamic"):
        return int(max_position_embeddings * rope["factor"])
    if rope_type == "yarn":
        return max(max_position_embeddings, int(rope["original_max_position_embeddings"] * (factor or 1.0)))
    return max_position_embeddings


def max_shareable_length(rope_parameters: Mapping[str, Any], max_position_embeddings: int) -> int | None:
    """Returns the longest prompt whose keys are those of any longer prompt that begins with it; None for any prompt.

    Dynamic NTK and LongRoPE rotate the keys of a request by how long it is, beyond a length. It is a config's
    `max_shareable_prompt`.

    Raises:
        UnsupportedModelError: as `RotaryEmbedding`.
    """
    rope = checked_rope(rope_parameters)
    if rope.get("rope_type") == "longrope":
        return int(rope["original_max_position_embeddings"])
    return max_position_embeddings if rope.get("rope_type") == "dynamic" else None
