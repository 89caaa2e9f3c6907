"""GPT-NeoX (Black et al., 2022) and Pythia (Biderman et al., 2023).

The reference implementation is transformers' `modeling_gpt_neox`. Shape suffixes: T tokens of all requests in a row, H
hidden size.
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
from pipezoo_gpt.gpt_neox.config import GPTNeoXConfig

__all__ = ["GPTNeoXForCausalLM", "GPTNeoXPipelineModel"]


class GPTNeoXAttention(nn.Module):
    """Multi-head attention; the first numbers of each head are rotated."""

    def __init__(self, config: GPTNeoXConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        queries, keys, bias = config.heads.queries, config.heads.keys, config.attention_bias
        parts = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        self.qkv_proj = MergedLinear(config.hidden_size, parts, bias=bias)
        self.dense = RowParallelLinear(queries, config.hidden_size, bias=bias)
        self.attention = Attention(layer_idx, backends)

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any]) -> Tensor:
        q, k, v = self.qkv_proj(x_TH)
        return self.dense(self.attention(q, k, v, kv, rotation))


class GPTNeoXLayer(nn.Module):
    """Attention and the feed-forward layer, each with a norm of its own, one beside or after the other."""

    def __init__(self, config: GPTNeoXConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.is_parallel = config.is_parallel
        self.input_layernorm = LayerNorm(hidden, config.layer_norm_eps)
        self.attention = GPTNeoXAttention(config, layer_idx, backends)
        self.post_attention_layernorm = LayerNorm(hidden, config.layer_norm_eps)
        names = ("dense_h_to_4h", "dense_4h_to_h")
        self.mlp = MLP(hidden, inner, config.activation, names=names, bias=True)

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any]) -> Tensor:
        if self.is_parallel:
            normalized_TH = self.post_attention_layernorm(x_TH)
            x_TH += self.attention(self.input_layernorm(x_TH), rotation, kv)
            x_TH += self.mlp(normalized_TH)
        else:
            x_TH += self.attention(self.input_layernorm(x_TH), rotation, kv)
            x_TH += self.mlp(self.post_attention_layernorm(x_TH))
        return x_TH


class GPTNeoXModel(nn.Module):
    """Embedding, layers, final norm."""

    def __init__(self, config: GPTNeoXConfig, backends: AttentionBackends) -> None:
        super().__init__()
        self.embed_in = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.rotary = RotaryEmbedding(config.rope_parameters, config.head_dim, config.max_position_embeddings)
        self.layers = nn.ModuleList(GPTNeoXLayer(config, i, backends) for i in range(config.num_layers))
        self.final_layer_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        x_TH = self.embed_in(tokens_T)
        rotation = self.rotary(kv.positions, kv.context_lengths, x_TH.dtype)
        for layer in self.layers:
            x_TH = layer(x_TH, rotation, kv)
        return self.final_layer_norm(x_TH)


class GPTNeoXForCausalLM(nn.Module):
    """The model with its head, which may share the embedding's weight."""

    def __init__(self, config: GPTNeoXConfig, backends: AttentionBackends) -> None:
        super().__init__()
        self.gpt_neox = GPTNeoXModel(config, backends)
        if config.tie_word_embeddings:
            self.lm_head = LMHead.sharing(self.gpt_neox.embed_in)
        else:
            self.lm_head = LMHead(config.hidden_size, config.vocab_size)

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        """Maps tokens [T] to hidden states [T, H]."""
        return self.gpt_neox(tokens_T, kv)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Maps hidden states [rows, H] to logits [rows, V]."""
        return self.lm_head(hidden)


class GPTNeoXPipelineModel(DecoderPipelineModel):
    """GPT-NeoX as a pipeline runs it."""

    config_class = GPTNeoXConfig
    module_class = GPTNeoXForCausalLM
