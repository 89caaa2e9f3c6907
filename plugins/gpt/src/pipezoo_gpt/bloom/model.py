"""BLOOM (BigScience, 2022). The reference implementation is transformers' `modeling_bloom`.

Shape suffixes: T tokens of all requests in a row, H hidden size.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pipezoo_core.attention import Attention, AttentionBackends
from pipezoo_core.decoder import DecoderPipelineModel
from pipezoo_core.kv_cache import KVCacheInputs
from pipezoo_core.layers import MLP, LayerNorm, LMHead, MergedLinear, RowParallelLinear, VocabParallelEmbedding
from pipezoo_gpt.bloom.config import BloomConfig

__all__ = ["BloomForCausalLM", "BloomPipelineModel"]


class BloomAttention(nn.Module):
    """Multi-head attention with biases; nothing but ALiBi says where a token is."""

    def __init__(self, config: BloomConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        queries, keys = config.heads.queries, config.heads.keys
        parts = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        self.query_key_value = MergedLinear(config.hidden_size, parts, bias=True)
        self.dense = RowParallelLinear(queries, config.hidden_size, bias=True)
        self.attention = Attention(layer_idx, backends)

    def forward(self, x_TH: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        q, k, v = self.query_key_value(x_TH)
        return self.dense(self.attention(q, k, v, kv))


class BloomBlock(nn.Module):
    """Attention, then the feed-forward layer, each on a normalized input and added to it, or to what it was before."""

    def __init__(self, config: BloomConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.adds_to_normalized = config.adds_to_normalized
        self.input_layernorm = LayerNorm(hidden, config.layer_norm_eps)
        self.self_attention = BloomAttention(config, layer_idx, backends)
        self.post_attention_layernorm = LayerNorm(hidden, config.layer_norm_eps)
        self.mlp = MLP(hidden, inner, "gelu_pytorch_tanh", names=("dense_h_to_4h", "dense_4h_to_h"), bias=True)

    def forward(self, x_TH: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        normed_TH = self.input_layernorm(x_TH)
        x_TH = normed_TH if self.adds_to_normalized else x_TH
        x_TH += self.self_attention(normed_TH, kv)
        normed_TH = self.post_attention_layernorm(x_TH)
        x_TH = normed_TH if self.adds_to_normalized else x_TH
        x_TH += self.mlp(normed_TH)
        return x_TH


class BloomModel(nn.Module):
    """Embedding and its norm, blocks, final norm."""

    def __init__(self, config: BloomConfig, backends: AttentionBackends) -> None:
        super().__init__()
        self.word_embeddings = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.word_embeddings_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.h = nn.ModuleList(BloomBlock(config, i, backends) for i in range(config.num_layers))
        self.ln_f = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        x_TH = self.word_embeddings_layernorm(self.word_embeddings(tokens_T))
        for block in self.h:
            x_TH = block(x_TH, kv)
        return self.ln_f(x_TH)


class BloomForCausalLM(nn.Module):
    """The model with its head, which may share the embedding's weight."""

    def __init__(self, config: BloomConfig, backends: AttentionBackends) -> None:
        super().__init__()
        self.transformer = BloomModel(config, backends)
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


class BloomPipelineModel(DecoderPipelineModel):
    """BLOOM as a pipeline runs it."""

    config_class = BloomConfig
    module_class = BloomForCausalLM
