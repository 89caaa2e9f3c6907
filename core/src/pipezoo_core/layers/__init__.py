"""Layers that more than one plugin uses."""

from pipezoo_core.layers.activations import ACTIVATIONS, ClampedGate, known_activation
from pipezoo_core.layers.alibi import alibi_slopes
from pipezoo_core.layers.alive import Estimable, KernelUse, estimable_layers
from pipezoo_core.layers.embedding import Embedding, LMHead, PositionEmbedding, VocabParallelEmbedding
from pipezoo_core.layers.experts import Experts
from pipezoo_core.layers.latent_heads import LatentHeads
from pipezoo_core.layers.linear import ColumnParallelLinear, Linear, MergedLinear, RowParallelLinear
from pipezoo_core.layers.linear_backends import choose_linear, join_experts, use_linear_backend, weights_memory
from pipezoo_core.layers.mamba import Mamba2, Mamba2Sizes
from pipezoo_core.layers.mlp import MLP, GatedMLP
from pipezoo_core.layers.norm import HeadNorm, LayerNorm, ParallelLayerNorm, ParallelRMSNorm, RMSNorm
from pipezoo_core.layers.precision import KeepsFloat32, float32_parameters, set_dtype
from pipezoo_core.layers.quantized import DEQUANTIZED_AT_ONCE
from pipezoo_core.layers.rotary import RotaryEmbedding, apply_rotary, halves
from pipezoo_core.layers.rotary_parameters import (
    ROPE_TYPES,
    max_rotary_length,
    max_shareable_length,
    rope_of_whole_heads,
)
from pipezoo_core.layers.router import Router
from pipezoo_core.layers.routing import Routing
from pipezoo_core.layers.split import Heads, Shard, Shardable, Split, as_split, shard_module
from pipezoo_core.layers.stored import StoredType

__all__ = [
    "ACTIVATIONS",
    "DEQUANTIZED_AT_ONCE",
    "MLP",
    "ROPE_TYPES",
    "ClampedGate",
    "ColumnParallelLinear",
    "Embedding",
    "Estimable",
    "Experts",
    "GatedMLP",
    "HeadNorm",
    "Heads",
    "KeepsFloat32",
    "KernelUse",
    "LMHead",
    "LatentHeads",
    "LayerNorm",
    "Linear",
    "Mamba2",
    "Mamba2Sizes",
    "MergedLinear",
    "ParallelLayerNorm",
    "ParallelRMSNorm",
    "PositionEmbedding",
    "RMSNorm",
    "RotaryEmbedding",
    "Router",
    "Routing",
    "RowParallelLinear",
    "Shard",
    "Shardable",
    "Split",
    "StoredType",
    "VocabParallelEmbedding",
    "alibi_slopes",
    "apply_rotary",
    "as_split",
    "choose_linear",
    "estimable_layers",
    "float32_parameters",
    "halves",
    "join_experts",
    "known_activation",
    "max_rotary_length",
    "max_shareable_length",
    "rope_of_whole_heads",
    "set_dtype",
    "shard_module",
    "use_linear_backend",
    "weights_memory",
]
