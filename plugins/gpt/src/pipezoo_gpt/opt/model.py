"""OPT (Zhang et al., 2022). The reference implementation is transformers' `modeling_opt`.

Shape suffixes: T tokens of all requests in a row, H hidden size, E numbers per row of the embedding.
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
    Linear,
    LMHead,
    MergedLinear,
    PositionEmbedding,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from pipezoo_gpt.opt.config import OPTConfig

__all__ = ["OPTForCausalLM", "OPTPipelineModel"]

_NORM_EPS = 1e-5  # no config says another
_FIRST_POSITION = 2  # the row of the first one: those before were a padding token's


class OPTAttention(nn.Module):
    """Multi-head attention."""

    def __init__(self, config: OPTConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        queries, keys = config.heads.queries, config.heads.keys
        parts = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        self.qkv_proj = MergedLinear(config.hidden_size, parts, bias=config.has_biases)
        self.out_proj = RowParallelLinear(queries, config.hidden_size, bias=config.has_biases)
        self.attention = Attention(layer_idx, backends)

    def forward(self, x_TH: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        q, k, v = self.qkv_proj(x_TH)
        return self.out_proj(self.attention(q, k, v, kv))


class OPTDecoderLayer(nn.Module):
    """Attention, then the feed-forward layer, each added to its input; norms before them, or after the sums (350M)."""

    def __init__(self, config: OPTConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        self.normalizes_inputs = config.normalizes_inputs
        self.self_attn = OPTAttention(config, layer_idx, backends)
        self.self_attn_layer_norm = _norm(config)
        self.mlp = MLP(
            config.hidden_size,
            config.intermediate_size,
            config.activation,
            names=("fc1", "fc2"),
            bias=config.has_biases,
        )
        self.final_layer_norm = _norm(config)

    def forward(self, x_TH: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        if self.normalizes_inputs:
            x_TH += self.self_attn(self.self_attn_layer_norm(x_TH), kv)
            x_TH += self.mlp(self.final_layer_norm(x_TH))
            return x_TH
        x_TH += self.self_attn(x_TH, kv)
        x_TH = self.self_attn_layer_norm(x_TH)
        x_TH += self.mlp(x_TH)
        return self.final_layer_norm(x_TH)


class OPTDecoder(nn.Module):
    """Embedding of tokens and of positions, layers, final norm.

    Rows of the embedding that are narrower than the layers are projected to H, and back to E at the end.
    """

    def __init__(self, config: OPTConfig, backends: AttentionBackends) -> None:
        super().__init__()
        hidden, embedding = config.hidden_size, config.embedding_size
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, embedding)
        self.embed_positions = PositionEmbedding(config.max_seq_len, hidden, offset=_FIRST_POSITION)
        self.project_in = Linear(embedding, hidden) if embedding != hidden else nn.Identity()
        self.layers = nn.ModuleList(OPTDecoderLayer(config, i, backends) for i in range(config.num_layers))
        self.final_layer_norm = _norm(config) if config.has_final_norm else nn.Identity()
        self.project_out = Linear(hidden, embedding) if embedding != hidden else nn.Identity()

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        """Maps tokens [T] to [T, E]."""
        x_TH = self.project_in(self.embed_tokens(tokens_T))
        x_TH += self.embed_positions(kv.positions)
        for layer in self.layers:
            x_TH = layer(x_TH, kv)
        x_TE: Tensor = self.project_out(self.final_layer_norm(x_TH))
        return x_TE


class OPTModel(nn.Module):
    """The decoder, under the name that checkpoints have for it."""

    def __init__(self, config: OPTConfig, backends: AttentionBackends) -> None:
        super().__init__()
        self.decoder = OPTDecoder(config, backends)

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        return self.decoder(tokens_T, kv)


class OPTForCausalLM(nn.Module):
    """The model with its head, which may share the embedding's weight."""

    def __init__(self, config: OPTConfig, backends: AttentionBackends) -> None:
        super().__init__()
        self.model = OPTModel(config, backends)
        if config.tie_word_embeddings:
            self.lm_head = LMHead.sharing(self.model.decoder.embed_tokens)
        else:
            self.lm_head = LMHead(config.embedding_size, config.vocab_size)

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        """Maps tokens [T] to what the head reads, [T, E]."""
        return self.model(tokens_T, kv)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Maps what the head reads, [rows, E], to logits [rows, V]."""
        return self.lm_head(hidden)


def _norm(config: OPTConfig) -> LayerNorm:
    has_weights = config.has_norm_weights
    return LayerNorm(config.hidden_size, _NORM_EPS, weight=has_weights, bias=has_weights)


class OPTPipelineModel(DecoderPipelineModel):
    """OPT as a pipeline runs it."""

    config_class = OPTConfig
    module_class = OPTForCausalLM
