"""StarCoder2 (Lozhkov et al., 2024). The reference implementation is transformers' `modeling_starcoder2`.

Shape suffixes: T tokens of all requests in a row, H hidden size.
"""

from __future__ import annotations

from typing import Any

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
from torch import Tensor, nn

from pipezoo_starcoder2.config import Starcoder2Config

__all__ = ["Starcoder2ForCausalLM", "Starcoder2PipelineModel"]


class Starcoder2Attention(nn.Module):
    """Grouped-query attention with rotary positions, to the tokens of a window."""

    def __init__(self, config: Starcoder2Config, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        queries, keys = config.heads.queries, config.heads.keys
        parts = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        self.qkv_proj = MergedLinear(config.hidden_size, parts, bias=config.use_bias)
        self.o_proj = RowParallelLinear(queries, config.hidden_size, bias=config.use_bias)
        self.attention = Attention(layer_idx, backends)

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any]) -> Tensor:
        """Maps [T, H] to [T, H]."""
        q, k, v = self.qkv_proj(x_TH)
        return self.o_proj(self.attention(q, k, v, kv, rotation))


class Starcoder2DecoderLayer(nn.Module):
    """Attention, then the feed-forward layer, each on a normalized input and added to it."""

    def __init__(self, config: Starcoder2Config, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        self.input_layernorm = LayerNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Starcoder2Attention(config, layer_idx, backends)
        self.post_attention_layernorm = LayerNorm(config.hidden_size, config.norm_eps)
        inner, names = config.intermediate_size, ("c_fc", "c_proj")
        self.mlp = MLP(config.hidden_size, inner, config.activation, names=names, bias=config.use_bias)

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any]) -> Tensor:
        """Maps [T, H] to [T, H]."""
        x_TH += self.self_attn(self.input_layernorm(x_TH), rotation, kv)
        x_TH += self.mlp(self.post_attention_layernorm(x_TH))
        return x_TH


class Starcoder2Model(nn.Module):
    """Embedding, decoder layers, final norm."""

    def __init__(self, config: Starcoder2Config, backends: AttentionBackends) -> None:
        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.rotary = RotaryEmbedding(config.rope_parameters, config.head_dim, config.max_position_embeddings)
        self.layers = nn.ModuleList(Starcoder2DecoderLayer(config, i, backends) for i in range(config.num_layers))
        self.norm = LayerNorm(config.hidden_size, config.norm_eps)

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        """Maps tokens [T] to hidden states [T, H]."""
        x_TH = self.embed_tokens(tokens_T)
        rotation = self.rotary(kv.positions, kv.context_lengths, x_TH.dtype)
        for layer in self.layers:
            x_TH = layer(x_TH, rotation, kv)
        return self.norm(x_TH)


class Starcoder2ForCausalLM(nn.Module):
    """The model with its head, which may share the embedding's weight."""

    def __init__(self, config: Starcoder2Config, backends: AttentionBackends) -> None:
        super().__init__()
        self.model = Starcoder2Model(config, backends)
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


class Starcoder2PipelineModel(DecoderPipelineModel):
    """Starcoder2 as a pipeline runs it."""

    config_class = Starcoder2Config
    module_class = Starcoder2ForCausalLM
