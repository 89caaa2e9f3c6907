"""Layers that more than one plugin uses."""

from pipezoo_core.layers.activations import ACTIVATIONS
from pipezoo_core.layers.alibi import alibi_slopes
from pipezoo_core.layers.embedding import Embedding, LMHead
from pipezoo_core.layers.linear import Linear, MergedLinear
from pipezoo_core.layers.linear_backends import use_linear_backend, weights_memory
from pipezoo_core.layers.mlp import GatedMLP
from pipezoo_core.layers.norm import RMSNorm
from pipezoo_core.layers.rotary import ROPE_TYPES, RotaryEmbedding, apply_rotary, max_rotary_length

__all__ = [
    "ACTIVATIONS",
    "ROPE_TYPES",
    "Embedding",
    "GatedMLP",
    "LMHead",
    "Linear",
    "MergedLinear",
    "RMSNorm",
    "RotaryEmbedding",
    "alibi_slopes",
    "apply_rotary",
    "max_rotary_length",
    "use_linear_backend",
    "weights_memory",
]
