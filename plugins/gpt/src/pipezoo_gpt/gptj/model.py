"""GPT-J (Wang and Komatsuzaki, 2021). The reference implementation is transformers' `modeling_gptj`.

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
from pipezoo_gpt.gptj.config import GPTJConfig

__all__ = ["GPTJForCausalLM", "GPTJPipelineModel"]

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}  # no config changes it


class GPTJAttention(nn.Module):
    """Multi-head attention without biases; the first numbers of each head are rotated."""

    def __init__(self, config: GPTJConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        queries, keys = config.heads.queries, config.heads.keys
        self.qkv_proj = MergedLinear(config.hidden_size, {"q_proj": queries, "k_proj": keys, "v_proj": keys})
        self.out_proj = RowParallelLinear(queries, config.hidden_size)
        self.attention = Attention(layer_idx, backends)

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any]) -> Tensor:
        q, k, v = self.qkv_proj(x_TH)
        return self.out_proj(self.attention(q, k, v, kv, rotation))


class GPTJBlock(nn.Module):
    """Attention and the feed-forward layer read the same normalized input; both are added to it."""

    def __init__(self, config: GPTJConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.ln_1 = LayerNorm(hidden, config.layer_norm_eps)
        self.attn = GPTJAttention(config, layer_idx, backends)
        self.mlp = MLP(hidden, inner, config.activation, names=("fc_in", "fc_out"), bias=True)

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any]) -> Tensor:
        normalized_TH = self.ln_1(x_TH)
        x_TH += self.attn(normalized_TH, rotation, kv)
        x_TH += self.mlp(normalized_TH)
        return x_TH


class GPTJModel(nn.Module):
    """Embedding, blocks, final norm."""

    def __init__(self, config: GPTJConfig, backends: AttentionBackends) -> None:
        super().__init__()
        self.wte = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.rotary = RotaryEmbedding(_ROPE, config.head_dim, config.max_seq_len, config.rotary_dim)
        self.h = nn.ModuleList(GPTJBlock(config, i, backends) for i in range(config.num_layers))
        self.ln_f = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        x_TH = self.wte(tokens_T)
        rotation = self.rotary(kv.positions, kv.context_lengths, x_TH.dtype)
        for block in self.h:
            x_TH = block(x_TH, rotation, kv)
        return self.ln_f(x_TH)


class GPTJForCausalLM(nn.Module):
    """The model with its head, which has a bias and may share the embedding's weight."""

    def __init__(self, config: GPTJConfig, backends: AttentionBackends) -> None:
        super().__init__()
        self.transformer = GPTJModel(config, backends)
        if config.tie_word_embeddings:
            self.lm_head = LMHead.sharing(self.transformer.wte, bias=True)
        else:
            self.lm_head = LMHead(config.hidden_size, config.vocab_size, bias=True)

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        """Maps tokens [T] to hidden states [T, H]."""
        return self.transformer(tokens_T, kv)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Maps hidden states [rows, H] to logits [rows, V]."""
        return self.lm_head(hidden)


class GPTJPipelineModel(DecoderPipelineModel):
    """GPT-J as a pipeline runs it."""

    config_class = GPTJConfig
    module_class = GPTJForCausalLM
