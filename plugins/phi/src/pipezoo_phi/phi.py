"""Phi-1, Phi-1.5 and Phi-2 (Li et al., 2023). The reference implementation is transformers' `modeling_phi`.

Shape suffixes: T tokens of all requests in a row, H hidden size, D head size.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pipezoo_core.attention import Attention, AttentionBackends, Rotation
from pipezoo_core.decoder import DecoderPipelineModel
from pipezoo_core.kv_cache import KVCacheInputs
from pipezoo_core.layers import (
    MLP,
    KernelUse,
    LayerNorm,
    LMHead,
    MergedLinear,
    RotaryEmbedding,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from pipezoo_phi.config import PhiConfig

__all__ = ["PhiForCausalLM", "PhiPipelineModel"]


class PhiAttention(nn.Module):
    """Attention with biases; the first numbers of each head are rotated, its queries and keys may be normalized."""

    def __init__(self, config: PhiConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        queries, keys = config.heads.queries, config.heads.keys
        parts = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        self.qkv_proj = MergedLinear(config.hidden_size, parts, bias=True)
        self.dense = RowParallelLinear(queries, config.hidden_size, bias=True)
        self.q_layernorm = HeadNorm(config) if config.qk_layernorm else nn.Identity()
        self.k_layernorm = HeadNorm(config) if config.qk_layernorm else nn.Identity()
        self.attention = Attention(layer_idx, backends)

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any]) -> Tensor:
        q, k, v = self.qkv_proj(x_TH)
        return self.dense(self.attention(self.q_layernorm(q), self.k_layernorm(k), v, kv, rotation))

    def alive(self, kernels: KernelUse) -> list[int]:
        """See `Estimable`."""
        del kernels
        q, k, v = self.qkv_proj.parts.values()
        return [q + k + v, q, k, q] if isinstance(self.q_layernorm, HeadNorm) else [q + k + v, q]


class HeadNorm(LayerNorm):
    """A `LayerNorm` of each head, with the same weight and bias for all."""

    def __init__(self, config: PhiConfig) -> None:
        super().__init__(config.head_dim, config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [T, heads · D] to the same."""
        return super().forward(x.unflatten(-1, (-1, self.size))).flatten(-2)


class PhiDecoderLayer(nn.Module):
    """Attention and the feed-forward layer read the same normalized input; both are added to it."""

    def __init__(self, config: PhiConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.input_layernorm = LayerNorm(hidden, config.layer_norm_eps)
        self.self_attn = PhiAttention(config, layer_idx, backends)
        self.mlp = MLP(hidden, inner, config.activation, names=("fc1", "fc2"), bias=True)

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any]) -> Tensor:
        normalized_TH = self.input_layernorm(x_TH)
        x_TH += self.self_attn(normalized_TH, rotation, kv)
        x_TH += self.mlp(normalized_TH)
        return x_TH

    def alive(self, kernels: KernelUse) -> list[int]:
        """See `Estimable`."""
        halves = [layer.alive(kernels) for layer in (self.self_attn, self.mlp)]
        return [self.input_layernorm.size, *max(halves, key=sum)]  # what is normalized stays until the second has it


class PhiModel(nn.Module):
    """Embedding, decoder layers, final norm."""

    def __init__(self, config: PhiConfig, backends: AttentionBackends) -> None:
        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.rotary = RotaryEmbedding(config.rope_parameters, config.head_dim, config.max_position_embeddings)
        self.layers = nn.ModuleList(PhiDecoderLayer(config, i, backends) for i in range(config.num_layers))
        self.final_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        x_TH = self.embed_tokens(tokens_T)
        rotation = self.rotary(kv.positions, kv.context_lengths, x_TH.dtype)
        for layer in self.layers:
            x_TH = layer(x_TH, rotation, kv)
        return self.final_layernorm(x_TH)


class PhiForCausalLM(nn.Module):
    """The model with its head, which has a bias and may share the embedding's weight."""

    def __init__(self, config: PhiConfig, backends: AttentionBackends) -> None:
        super().__init__()
        self.model = PhiModel(config, backends)
        if config.tie_word_embeddings:
            self.lm_head = LMHead.sharing(self.model.embed_tokens, bias=True)
        else:
            self.lm_head = LMHead(config.hidden_size, config.vocab_size, bias=True)

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        """Maps tokens [T] to hidden states [T, H]."""
        return self.model(tokens_T, kv)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Maps hidden states [rows, H] to logits [rows, V]."""
        return self.lm_head(hidden)


class PhiPipelineModel(DecoderPipelineModel):
    """Phi as a pipeline runs it."""

    config_class = PhiConfig
    module_class = PhiForCausalLM
