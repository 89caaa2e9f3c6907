"""Falcon (Almazrouei et al., 2023). The reference implementation is transformers' `modeling_falcon`.

Shape suffixes: T tokens of all requests in a row, H hidden size.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pipezoo_core.attention import Attention, AttentionBackends, Rotation
from pipezoo_core.decoder import DecoderPipelineModel
from pipezoo_core.kv_cache import KVCacheInputs
from pipezoo_core.layers import (
    MLP,
    LayerNorm,
    LMHead,
    MergedLinear,
    RotaryEmbedding,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from pipezoo_gpt.falcon.config import FalconConfig

__all__ = ["FalconForCausalLM", "FalconPipelineModel"]


class FalconAttention(nn.Module):
    """Attention with as many key/value heads as query heads, fewer, or one."""

    def __init__(self, config: FalconConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        queries, keys = config.heads.queries, config.heads.keys
        parts = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        self.query_key_value = MergedLinear(config.hidden_size, parts, bias=config.has_biases)
        self.dense = RowParallelLinear(queries, config.hidden_size, bias=config.has_biases)
        self.attention = Attention(layer_idx, backends)

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any]) -> Tensor:
        q, k, v = self.query_key_value(x_TH)
        return self.dense(self.attention(q, k, v, kv, rotation))


class FalconDecoderLayer(nn.Module):
    """Attention and the feed-forward layer, side by side or one after the other."""

    def __init__(self, config: FalconConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.is_parallel = config.is_parallel
        self.input_layernorm = LayerNorm(hidden, config.layer_norm_eps)
        self.self_attention = FalconAttention(config, layer_idx, backends)
        self.post_attention_layernorm = LayerNorm(hidden, config.layer_norm_eps) if config.has_mlp_norm else None
        names = ("dense_h_to_4h", "dense_4h_to_h")
        self.mlp = MLP(hidden, inner, config.activation, names=names, bias=config.has_biases)

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any]) -> Tensor:
        normed_TH = self.input_layernorm(x_TH)
        attended_TH = self.self_attention(normed_TH, rotation, kv)
        if not self.is_parallel:
            x_TH += attended_TH
        if self.post_attention_layernorm is not None:
            normed_TH = self.post_attention_layernorm(x_TH)
        if self.is_parallel:
            x_TH += attended_TH
        x_TH += self.mlp(normed_TH)
        return x_TH


class FalconModel(nn.Module):
    """Embedding, layers, final norm."""

    def __init__(self, config: FalconConfig, backends: AttentionBackends) -> None:
        super().__init__()
        self.word_embeddings = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.rotary = RotaryEmbedding(config.rope_parameters, config.head_dim, config.max_position_embeddings)
        self.h = nn.ModuleList(FalconDecoderLayer(config, i, backends) for i in range(config.num_layers))
        self.ln_f = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        x_TH = self.word_embeddings(tokens_T)
        rotation = self.rotary(kv.positions, kv.context_lengths, x_TH.dtype)
        for layer in self.h:
            x_TH = layer(x_TH, rotation, kv)
        return self.ln_f(x_TH)


class FalconForCausalLM(nn.Module):
    """The model with its head, which may share the embedding's weight."""

    def __init__(self, config: FalconConfig, backends: AttentionBackends) -> None:
        super().__init__()
        self.transformer = FalconModel(config, backends)
        if config.tie_word_embeddings:
            self.lm_head = LMHead.sharing(self.transformer.word_embeddings)
        else:
            self.lm_head = LMHead(config.hidden_size, config.vocab_size)

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        """Maps tokens [T] to hidden states [T, H]."""
        return self.transformer(tokens_T, kv)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Maps hidden states [rows, H] to logits [rows, V]."""
        return self.lm_head(hidden)


class FalconPipelineModel(DecoderPipelineModel):
    """Falcon as a pipeline runs it."""

    config_class = FalconConfig
    module_class = FalconForCausalLM
