"""Gemma (Gemma Team, 2024), Gemma 2 (2024) and the text part of Gemma 3 (2025).

The reference implementations are transformers' `modeling_gemma`, `modeling_gemma2` and `modeling_gemma3`.

Shape suffixes: T tokens of all requests in a row, H hidden size, D head size.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pipezoo_core.attention import Attention, AttentionBackends, Rotation
from pipezoo_core.decoder import DecoderPipelineModel
from pipezoo_core.kv_cache import KVCacheInputs
from pipezoo_core.layers import (
    GatedMLP,
    HeadNorm,
    KernelUse,
    LMHead,
    MergedLinear,
    RMSNorm,
    RotaryEmbedding,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from pipezoo_gemma.config import GemmaConfig

__all__ = ["GemmaForCausalLM", "GemmaPipelineModel"]


class GemmaNorm(RMSNorm):
    """An `RMSNorm` whose weights are what is to be added to 1."""

    def __init__(self, config: GemmaConfig, size: int) -> None:
        super().__init__(size, config.rms_norm_eps, offset=1.0)


class GemmaAttention(nn.Module):
    """Grouped-query attention with rotary positions, each head of queries and keys normalized before in Gemma 3."""

    def __init__(self, config: GemmaConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        queries, keys = config.heads.queries, config.heads.keys
        parts = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        self.qkv_proj = MergedLinear(config.hidden_size, parts, bias=config.attention_bias)
        self.o_proj = RowParallelLinear(queries, config.hidden_size, bias=config.attention_bias)
        self.q_norm = HeadNorm(config.head_dim, config.rms_norm_eps, offset=1.0) if config.qk_norm else nn.Identity()
        self.k_norm = HeadNorm(config.head_dim, config.rms_norm_eps, offset=1.0) if config.qk_norm else nn.Identity()
        self.attention = Attention(layer_idx, backends)

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any]) -> Tensor:
        q, k, v = self.qkv_proj(x_TH)
        return self.o_proj(self.attention(self.q_norm(q), self.k_norm(k), v, kv, rotation))

    def alive(self, kernels: KernelUse) -> list[int]:
        """See `Estimable`."""
        del kernels
        q, k, v = self.qkv_proj.parts.values()
        return [q + k + v, q, k, q] if isinstance(self.q_norm, HeadNorm) else [q + k + v, q]


class GemmaDecoderLayer(nn.Module):
    """Gemma's: attention, then the feed-forward layer, each on a normalized input and added to it."""

    def __init__(self, config: GemmaConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        self.input_layernorm = GemmaNorm(config, config.hidden_size)
        self.self_attn = GemmaAttention(config, layer_idx, backends)
        self.post_attention_layernorm = GemmaNorm(config, config.hidden_size)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, config.activation)

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any]) -> Tensor:
        x_TH += self.self_attn(self.input_layernorm(x_TH), rotation, kv)
        x_TH += self.mlp(self.post_attention_layernorm(x_TH))
        return x_TH


class Gemma2DecoderLayer(nn.Module):
    """Gemma 2's and 3's: what is added is normalized, too."""

    def __init__(self, config: GemmaConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        self.input_layernorm = GemmaNorm(config, config.hidden_size)
        self.self_attn = GemmaAttention(config, layer_idx, backends)
        self.post_attention_layernorm = GemmaNorm(config, config.hidden_size)
        self.pre_feedforward_layernorm = GemmaNorm(config, config.hidden_size)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, config.activation)
        self.post_feedforward_layernorm = GemmaNorm(config, config.hidden_size)

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any]) -> Tensor:
        x_TH += self.post_attention_layernorm(self.self_attn(self.input_layernorm(x_TH), rotation, kv))
        x_TH += self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x_TH)))
        return x_TH


class GemmaModel(nn.Module):
    """Embedding, decoder layers, final norm. Layers with a window may be rotated otherwise than those without."""

    def __init__(self, config: GemmaConfig, backends: AttentionBackends) -> None:
        super().__init__()
        layer_class = Gemma2DecoderLayer if config.post_norms else GemmaDecoderLayer
        scale = config.hidden_size**0.5
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size, scale=scale)
        self.rotaries = nn.ModuleList(
            RotaryEmbedding(rope, config.head_dim, config.max_position_embeddings, config.head_dim)
            for rope in config.ropes
        )
        self.rope_of_layers = config.rope_of_layers
        self.layers = nn.ModuleList(layer_class(config, i, backends) for i in range(config.num_layers))
        self.norm = GemmaNorm(config, config.hidden_size)

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        x_TH = self.embed_tokens(tokens_T)
        rotations = [rotary(kv.positions, kv.context_lengths, x_TH.dtype) for rotary in self.rotaries]
        for layer, rope in zip(self.layers, self.rope_of_layers, strict=True):
            x_TH = layer(x_TH, rotations[rope], kv)
        return self.norm(x_TH)


class GemmaForCausalLM(nn.Module):
    """The model with its head, which mostly shares the embedding's weight, and bounds the logits in Gemma 2."""

    def __init__(self, config: GemmaConfig, backends: AttentionBackends) -> None:
        super().__init__()
        self.model = GemmaModel(config, backends)
        if config.tie_word_embeddings:
            self.lm_head = LMHead.sharing(self.model.embed_tokens, softcap=config.logit_softcap)
        else:
            self.lm_head = LMHead(config.hidden_size, config.vocab_size, softcap=config.logit_softcap)

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        """Maps tokens [T] to hidden states [T, H]."""
        return self.model(tokens_T, kv)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Maps hidden states [rows, H] to logits [rows, V]."""
        return self.lm_head(hidden)


class GemmaPipelineModel(DecoderPipelineModel):
    """Gemma as a pipeline runs it."""

    config_class = GemmaConfig
    module_class = GemmaForCausalLM
