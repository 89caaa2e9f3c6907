"""StableLM (Bellagente et al., 2024). The reference implementation is transformers' `modeling_stablelm`.

Shape suffixes: T tokens of all requests in a row, H hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from pipezoo_core.attention import Attention, AttentionBackends, Rotation
from pipezoo_core.decoder import DecoderPipelineModel
from pipezoo_core.distributed import TensorParallelGroup
from pipezoo_core.kv_cache import KVCacheInputs
from pipezoo_core.layers import (
    GatedMLP,
    KernelUse,
    LayerNorm,
    LMHead,
    MergedLinear,
    RotaryEmbedding,
    RowParallelLinear,
    Shard,
    Split,
    VocabParallelEmbedding,
)
from torch import Tensor, nn

from pipezoo_stablelm.config import StableLmConfig

__all__ = ["StableLmForCausalLM", "StableLmPipelineModel"]


class HeadNorms(nn.Module):
    """`LayerNorm` of each head, with a weight of its own for each and no bias.

    Args:
        heads: the dimension of all of them.
        head_dim: numbers per head.
        eps: added to the variance.
    """

    def __init__(self, heads: Split, head_dim: int, eps: float) -> None:
        super().__init__()
        self.norm = LayerNorm(head_dim, eps, weight=False, bias=False)
        self.weight = nn.Parameter(torch.empty(heads.size))
        self.shards: dict[str, Shard] = {}
        self._heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """Maps [T, this rank's heads · head_dim] to the same."""
        normalized: Tensor = self.norm(x.unflatten(-1, (-1, self.norm.size)))
        return normalized.flatten(-2) * self.weight

    def shard(self, group: TensorParallelGroup) -> None:
        """Keeps the weights of this rank's heads."""
        part = self._heads.part(group.rank, group.size)
        self.shards = {"weight": Shard(0, (part,))}
        self.weight = nn.Parameter(self.weight[part], requires_grad=False)


class StableLmAttention(nn.Module):
    """Grouped-query attention; the first numbers of each head are rotated, its queries and keys may be normalized."""

    def __init__(self, config: StableLmConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        queries, keys = config.heads.queries, config.heads.keys
        parts = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        self.qkv_proj = MergedLinear(config.hidden_size, parts, bias=config.use_qkv_bias)
        self.o_proj = RowParallelLinear(queries, config.hidden_size)
        self.has_norms = config.qk_layernorm
        self.q_layernorm = HeadNorms(queries, config.head_dim, config.norm_eps) if self.has_norms else nn.Identity()
        self.k_layernorm = HeadNorms(keys, config.head_dim, config.norm_eps) if self.has_norms else nn.Identity()
        self.attention = Attention(layer_idx, backends)

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any]) -> Tensor:
        """Maps [T, H] to [T, H]."""
        q, k, v = self.qkv_proj(x_TH)
        return self.o_proj(self.attention(self.q_layernorm(q), self.k_layernorm(k), v, kv, rotation))

    def alive(self, kernels: KernelUse) -> list[int]:
        """See `Estimable`."""
        del kernels
        q, k, v = self.qkv_proj.parts.values()
        return [q + k + v, q, k, q] if self.has_norms else [q + k + v, q]


class StableLmDecoderLayer(nn.Module):
    """Attention and the feed-forward layer, on a normalized input, one beside or after the other."""

    def __init__(self, config: StableLmConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        self.input_layernorm = LayerNorm(config.hidden_size, config.norm_eps)
        self.self_attn = StableLmAttention(config, layer_idx, backends)
        self.is_parallel = config.use_parallel_residual
        if not self.is_parallel:
            self.post_attention_layernorm = LayerNorm(config.hidden_size, config.norm_eps)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, config.activation)

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any]) -> Tensor:
        """Maps [T, H] to [T, H]."""
        normalized_TH = self.input_layernorm(x_TH)
        x_TH += self.self_attn(normalized_TH, rotation, kv)
        x_TH += self.mlp(normalized_TH if self.is_parallel else self.post_attention_layernorm(x_TH))
        return x_TH

    def alive(self, kernels: KernelUse) -> list[int]:
        """See `Estimable`. What is normalized stays until attention has it, or both have it."""
        parts = max(self.self_attn.alive(kernels), self.mlp.alive(kernels), key=sum)
        return [self.input_layernorm.size, *parts]


class StableLmModel(nn.Module):
    """Embedding, decoder layers, final norm."""

    def __init__(self, config: StableLmConfig, backends: AttentionBackends) -> None:
        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.rotary = RotaryEmbedding(config.rope_parameters, config.head_dim, config.max_position_embeddings)
        self.layers = nn.ModuleList(StableLmDecoderLayer(config, i, backends) for i in range(config.num_layers))
        self.norm = LayerNorm(config.hidden_size, config.norm_eps)

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        """Maps tokens [T] to hidden states [T, H]."""
        x_TH = self.embed_tokens(tokens_T)
        rotation = self.rotary(kv.positions, kv.context_lengths, x_TH.dtype)
        for layer in self.layers:
            x_TH = layer(x_TH, rotation, kv)
        return self.norm(x_TH)


class StableLmForCausalLM(nn.Module):
    """The model with its head, which may share the embedding's weight."""

    def __init__(self, config: StableLmConfig, backends: AttentionBackends) -> None:
        super().__init__()
        self.model = StableLmModel(config, backends)
        if config.tie_word_embeddings:
            self.lm_head = LMHead.sharing(self.model.embed_tokens)
        else:
            self.lm_head = LMHead(config.hidden_size, config.vocab_size)

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        """Maps tokens [T] to hidden states [T, H]."""
        return self.model(tokens_T, kv)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Maps hidden states [rows, H] to logits [rows, V]."""
        return self.lm_head(hidden)


class StableLmPipelineModel(DecoderPipelineModel):
    """StableLM as a pipeline runs it."""

    config_class = StableLmConfig
    module_class = StableLmForCausalLM
