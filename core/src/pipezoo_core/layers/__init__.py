"""Layers that more than one plugin uses."""

from pipezoo_core.layers.activations import ACTIVATIONS
from pipezoo_core.layers.alibi import alibi_slopes
from pipezoo_core.layers.embedding import Embedding, LMHead, VocabParallelEmbedding
from pipezoo_core.layers.linear import ColumnParallelLinear, Linear, MergedLinear, RowParallelLinear
from pipezoo_core.layers.linear_backends import choose_linear, use_linear_backend, weights_memory
from pipezoo_core.layers.mlp import GatedMLP
from pipezoo_core.layers.norm import ParallelLayerNorm, RMSNorm
from pipezoo_core.layers.quantized import DEQUANTIZED_AT_ONCE
from pipezoo_core.layers.rotary import ROPE_TYPES, RotaryEmbedding, apply_rotary, max_rotary_length
from pipezoo_core.layers.routing import Routing
from pipezoo_core.layers.split import Heads, Shard, Shardable, Split, as_split, shard_module

__all__ = [
    "ACTIVATIONS",
    "DEQUANTIZED_AT_ONCE",
    "ROPE_TYPES",
    "ColumnParallelLinear",
    "Embedding",
    "GatedMLP",
    "Heads",
    "LMHead",
    "Linear",
    "MergedLinear",
    "ParallelLayerNorm",
    "RMSNorm",
    "RotaryEmbedding",
    "Routing",
    "RowParallelLinear",
    "Shard",
    "Shardable",
    "Split",
    "VocabParallelEmbedding",
    "alibi_slopes",
    "apply_rotary",
    "as_split",
    "choose_linear",
    "max_rotary_length",
    "shard_module",
    "use_linear_backend",
    "weights_memory",
]
