"""GPT-2 (Radford et al., 2019). The reference implementation is transformers' `modeling_gpt2`.

Shape suffixes: T tokens of all requests in a row, H hidden size.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pipezoo_core.attention import Attention, AttentionBackends
from pipezoo_core.decoder import DecoderPipelineModel
from pipezoo_core.kv_cache import KVCacheInputs
from pipezoo_core.layers import (
    MLP,
    LayerNorm,
    LMHead,
    MergedLinear,
    PositionEmbedding,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from pipezoo_gpt.gpt2.config import GPT2Config

__all__ = ["GPT2LMHeadModel", "GPT2PipelineModel"]


class GPT2Attention(nn.Module):
    """Multi-head attention with biases."""

    def __init__(self, config: GPT2Config, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        queries, keys = config.heads.queries, config.heads.keys
        parts = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        self.qkv_proj = MergedLinear(config.hidden_size, parts, bias=True)
        self.c_proj = RowParallelLinear(queries, config.hidden_size, bias=True)
        self.attention = Attention(layer_idx, backends)

    def forward(self, x_TH: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        q, k, v = self.qkv_proj(x_TH)
        return self.c_proj(self.attention(q, k, v, kv))


class GPT2Block(nn.Module):
    """Attention, then the feed-forward layer, each on a normalized input and added to it."""

    def __init__(self, config: GPT2Config, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.ln_1 = LayerNorm(hidden, config.layer_norm_eps)
        self.attn = GPT2Attention(config, layer_idx, backends)
        self.ln_2 = LayerNorm(hidden, config.layer_norm_eps)
        self.mlp = MLP(hidden, inner, config.activation, names=("c_fc", "c_proj"), bias=True)

    def forward(self, x_TH: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        x_TH += self.attn(self.ln_1(x_TH), kv)
        x_TH += self.mlp(self.ln_2(x_TH))
        return x_TH


class GPT2Model(nn.Module):
    """Embedding of tokens and of positions, blocks, final norm."""

    def __init__(self, config: GPT2Config, backends: AttentionBackends) -> None:
        super().__init__()
        self.wte = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.wpe = PositionEmbedding(config.max_seq_len, config.hidden_size)
        self.h = nn.ModuleList(GPT2Block(config, i, backends) for i in range(config.num_layers))
        self.ln_f = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        x_TH = self.wte(tokens_T)
        x_TH += self.wpe(kv.positions)
        for block in self.h:
            x_TH = block(x_TH, kv)
        return self.ln_f(x_TH)


class GPT2LMHeadModel(nn.Module):
    """The model with its head, which may share the embedding's weight."""

    def __init__(self, config: GPT2Config, backends: AttentionBackends) -> None:
        super().__init__()
        self.transformer = GPT2Model(config, backends)
        if config.tie_word_embeddings:
            self.lm_head = LMHead.sharing(self.transformer.wte)
        else:
            self.lm_head = LMHead(config.hidden_size, config.vocab_size)

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        """Maps tokens [T] to hidden states [T, H]."""
        return self.transformer(tokens_T, kv)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Maps hidden states [rows, H] to logits [rows, V]."""
        return self.lm_head(hidden)


class GPT2PipelineModel(DecoderPipelineModel):
    """GPT-2 as a pipeline runs it."""

    config_class = GPT2Config
    module_class = GPT2LMHeadModel
