"""Phi-3 (Abdin et al., 2024) and Phi-4. The reference implementation is transformers' `modeling_phi3`.

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
    LMHead,
    MergedLinear,
    RMSNorm,
    RotaryEmbedding,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from pipezoo_phi.config import Phi3Config

__all__ = ["Phi3ForCausalLM", "Phi3PipelineModel"]


class Phi3Attention(nn.Module):
    """Grouped-query attention; the first numbers of each head are rotated."""

    def __init__(self, config: Phi3Config, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        queries, keys = config.heads.queries, config.heads.keys
        self.qkv_proj = MergedLinear(config.hidden_size, {"q_proj": queries, "k_proj": keys, "v_proj": keys})
        self.o_proj = RowParallelLinear(queries, config.hidden_size)
        self.attention = Attention(layer_idx, backends)

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any]) -> Tensor:
        q, k, v = self.qkv_proj(x_TH)
        return self.o_proj(self.attention(q, k, v, kv, rotation))


class Phi3DecoderLayer(nn.Module):
    """Attention, then the feed-forward layer, each on a normalized input and added to it."""

    def __init__(self, config: Phi3Config, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Phi3Attention(config, layer_idx, backends)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, config.activation)

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any]) -> Tensor:
        x_TH += self.self_attn(self.input_layernorm(x_TH), rotation, kv)
        x_TH += self.mlp(self.post_attention_layernorm(x_TH))
        return x_TH


class Phi3Model(nn.Module):
    """Embedding, decoder layers, final norm."""

    def __init__(self, config: Phi3Config, backends: AttentionBackends) -> None:
        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.rotary = RotaryEmbedding(config.rope_parameters, config.head_dim, config.max_position_embeddings)
        self.layers = nn.ModuleList(Phi3DecoderLayer(config, i, backends) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        x_TH = self.embed_tokens(tokens_T)
        rotation = self.rotary(kv.positions, kv.context_lengths, x_TH.dtype)
        for layer in self.layers:
            x_TH = layer(x_TH, rotation, kv)
        return self.norm(x_TH)


class Phi3ForCausalLM(nn.Module):
    """The model with its head, which may share the embedding's weight."""

    def __init__(self, config: Phi3Config, backends: AttentionBackends) -> None:
        super().__init__()
        self.model = Phi3Model(config, backends)
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


class Phi3PipelineModel(DecoderPipelineModel):
    """Phi-3 as a pipeline runs it."""

    config_class = Phi3Config
    module_class = Phi3ForCausalLM
