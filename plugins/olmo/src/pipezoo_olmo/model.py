"""OLMo (Groeneveld et al., 2024), OLMo 2 (OLMo Team, 2025) and OLMo 3 (2025).

The reference implementations are transformers' `modeling_olmo`, `modeling_olmo2` and `modeling_olmo3`.

Shape suffixes: T tokens of all requests in a row, H hidden size.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pipezoo_core.attention import Attention, AttentionBackends, Rotation
from pipezoo_core.decoder import DecoderPipelineModel
from pipezoo_core.kv_cache import KVCacheInputs
from pipezoo_core.layers import (
    GatedMLP,
    KernelUse,
    LayerNorm,
    LMHead,
    MergedLinear,
    ParallelRMSNorm,
    RMSNorm,
    RotaryEmbedding,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from pipezoo_olmo.config import OlmoConfig

__all__ = ["OlmoForCausalLM", "OlmoPipelineModel"]


class OlmoAttention(nn.Module):
    """Grouped-query attention with rotary positions, of queries, keys and values that are clipped where asked."""

    def __init__(self, config: OlmoConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        queries, keys = config.heads.queries, config.heads.keys
        parts = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        self.qkv_proj = MergedLinear(config.hidden_size, parts, bias=config.attention_bias)
        self.o_proj = RowParallelLinear(queries, config.hidden_size, bias=config.attention_bias)
        self.clip = config.clip_qkv
        self.attention = Attention(layer_idx, backends)

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any]) -> Tensor:
        q, k, v = self.qkv_proj(x_TH)
        if self.clip is not None:
            q, k, v = (x.clamp(-self.clip, self.clip) for x in (q, k, v))
        return self.o_proj(self.attention(q, k, v, kv, rotation))

    def alive(self, kernels: KernelUse) -> list[int]:
        """See `Estimable`."""
        del kernels
        q, k, v = self.qkv_proj.parts.values()
        return [q + k + v, q] if self.clip is None else [q + k + v, q, k, v, q]


class Olmo2Attention(nn.Module):
    """OLMo 2's and 3's: all queries together are normalized before they are rotated, and all keys."""

    def __init__(self, config: OlmoConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        queries, keys = config.heads.queries, config.heads.keys
        parts = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        self.qkv_proj = MergedLinear(config.hidden_size, parts, bias=config.attention_bias)
        self.o_proj = RowParallelLinear(queries, config.hidden_size, bias=config.attention_bias)
        self.q_norm = ParallelRMSNorm(queries, config.norm_eps)
        self.k_norm = ParallelRMSNorm(keys, config.norm_eps)
        self.attention = Attention(layer_idx, backends)

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any]) -> Tensor:
        q, k, v = self.qkv_proj(x_TH)
        return self.o_proj(self.attention(self.q_norm(q), self.k_norm(k), v, kv, rotation))

    def alive(self, kernels: KernelUse) -> list[int]:
        """See `Estimable`."""
        del kernels
        q, k, v = self.qkv_proj.parts.values()
        return [q + k + v, q, k, q]


class OlmoDecoderLayer(nn.Module):
    """OLMo's: attention, then the feed-forward layer, each on an input normalized without weights and added to it."""

    def __init__(self, config: OlmoConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        self.input_layernorm = LayerNorm(config.hidden_size, config.norm_eps, weight=False, bias=False)
        self.self_attn = OlmoAttention(config, layer_idx, backends)
        self.post_attention_layernorm = LayerNorm(config.hidden_size, config.norm_eps, weight=False, bias=False)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, config.activation)

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any]) -> Tensor:
        x_TH += self.self_attn(self.input_layernorm(x_TH), rotation, kv)
        x_TH += self.mlp(self.post_attention_layernorm(x_TH))
        return x_TH


class Olmo2DecoderLayer(nn.Module):
    """OLMo 2's and 3's: not what goes into a layer is normalized, but what comes out of it."""

    def __init__(self, config: OlmoConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        self.self_attn = Olmo2Attention(config, layer_idx, backends)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, config.activation)
        self.post_feedforward_layernorm = RMSNorm(config.hidden_size, config.norm_eps)

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any]) -> Tensor:
        x_TH += self.post_attention_layernorm(self.self_attn(x_TH, rotation, kv))
        x_TH += self.post_feedforward_layernorm(self.mlp(x_TH))
        return x_TH


class OlmoModel(nn.Module):
    """Embedding, decoder layers, final norm. Layers with a window may be rotated otherwise than those without."""

    def __init__(self, config: OlmoConfig, backends: AttentionBackends) -> None:
        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.rotaries = nn.ModuleList(
            RotaryEmbedding(rope, config.head_dim, config.max_position_embeddings, config.head_dim)
            for rope in config.ropes
        )
        self.rope_of_layers = config.rope_of_layers
        layer_class = OlmoDecoderLayer if config.is_first else Olmo2DecoderLayer
        self.layers = nn.ModuleList(layer_class(config, i, backends) for i in range(config.num_layers))
        if config.is_first:
            self.norm: nn.Module = LayerNorm(config.hidden_size, config.norm_eps, weight=False, bias=False)
        else:
            self.norm = RMSNorm(config.hidden_size, config.norm_eps)

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        x_TH = self.embed_tokens(tokens_T)
        rotations = [rotary(kv.positions, kv.context_lengths, x_TH.dtype) for rotary in self.rotaries]
        for layer, rope in zip(self.layers, self.rope_of_layers, strict=True):
            x_TH = layer(x_TH, rotations[rope], kv)
        return self.norm(x_TH)


class OlmoForCausalLM(nn.Module):
    """The model with its head, which may share the embedding's weight."""

    def __init__(self, config: OlmoConfig, backends: AttentionBackends) -> None:
        super().__init__()
        self.model = OlmoModel(config, backends)
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


class OlmoPipelineModel(DecoderPipelineModel):
    """OLMo as a pipeline runs it."""

    config_class = OlmoConfig
    module_class = OlmoForCausalLM
