"""Mistral (Jiang et al., 2023), Mixtral (Jiang et al., 2024), and Ministral 3, which scales queries by their position.

The reference implementations are transformers' `modeling_mistral`, `modeling_mixtral` and `modeling_ministral3`.

Shape suffixes: T tokens of all requests in a row, H hidden size, D head size.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from pipezoo_core.attention import Attention, AttentionBackends, Rotation
from pipezoo_core.decoder import DecoderPipelineModel
from pipezoo_core.kv_cache import KVCacheInputs
from pipezoo_core.layers import (
    Experts,
    GatedMLP,
    KernelUse,
    LMHead,
    MergedLinear,
    RMSNorm,
    RotaryEmbedding,
    Router,
    Routing,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from pipezoo_mistral.config import MistralConfig

__all__ = ["MistralForCausalLM", "MistralPipelineModel"]


class QueryScale(nn.Module):
    """`1 + growth · log(1 + ⌊position / length⌋)`, the factor on queries beyond the length that was trained first.

    Args:
        growth: in the length's logarithm.
        length: the positions below it have the factor 1.
    """

    def __init__(self, growth: float, length: int) -> None:
        super().__init__()
        self.growth = growth
        self.length = length

    @classmethod
    def of(cls, config: MistralConfig) -> Self | None:
        """Returns what a config says; None where queries are not scaled."""
        if config.query_growth is None:
            return None
        return cls(config.query_growth, config.rope_parameters["original_max_position_embeddings"])

    def forward(self, positions_T: Tensor, dtype: torch.dtype) -> Tensor:
        """Maps int64 [T] to [T, 1]; it is computed in float32."""
        return (1 + self.growth * torch.log(1 + torch.floor(positions_T / self.length))).to(dtype).unsqueeze(-1)


class MistralAttention(nn.Module):
    """Grouped-query attention over a sliding window, with rotary positions."""

    def __init__(self, config: MistralConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        queries, keys = config.heads.queries, config.heads.keys
        parts = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        self.qkv_proj = MergedLinear(config.hidden_size, parts)
        self.o_proj = RowParallelLinear(queries, config.hidden_size)
        self.query_growth = config.query_growth
        self.attention = Attention(layer_idx, backends)

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any], scale_T1: Tensor | None) -> Tensor:
        q, k, v = self.qkv_proj(x_TH)
        if scale_T1 is not None:
            q = q * scale_T1
        return self.o_proj(self.attention(q, k, v, kv, rotation))

    def alive(self, kernels: KernelUse) -> list[int]:
        """See `Estimable`."""
        del kernels
        q, k, v = self.qkv_proj.parts.values()
        return [q + k + v, q] if self.query_growth is None else [q + k + v, q, q]


class MixtralExperts(nn.Module):
    """A few experts for each token, whose weights add up to 1."""

    def __init__(self, config: MistralConfig, routing: Routing) -> None:
        super().__init__()
        self.gate = Router(config.hidden_size, routing)
        sizes = (config.hidden_size, config.intermediate_size, routing.num_experts, routing.top_k)
        self.experts = Experts(*sizes, config.activation)

    def forward(self, x_TH: Tensor) -> Tensor:
        """Maps [T, H] to [T, H]."""
        return self.experts(x_TH, *self.gate(x_TH))


def _feed_forward(config: MistralConfig) -> nn.Module:
    if config.routing is not None:
        return MixtralExperts(config, config.routing)
    return GatedMLP(config.hidden_size, config.intermediate_size, config.activation)


class MistralDecoderLayer(nn.Module):
    """Attention, then the feed-forward layer, each on a normalized input and added to it."""

    def __init__(self, config: MistralConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = MistralAttention(config, layer_idx, backends)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = _feed_forward(config)

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any], scale_T1: Tensor | None) -> Tensor:
        x_TH += self.self_attn(self.input_layernorm(x_TH), rotation, kv, scale_T1)
        x_TH += self.mlp(self.post_attention_layernorm(x_TH))
        return x_TH


class MistralModel(nn.Module):
    """Embedding, decoder layers, final norm."""

    def __init__(self, config: MistralConfig, backends: AttentionBackends) -> None:
        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.rotary = RotaryEmbedding(config.rope_parameters, config.head_dim, config.max_position_embeddings)
        self.query_scale = QueryScale.of(config)
        self.layers = nn.ModuleList(MistralDecoderLayer(config, i, backends) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        x_TH = self.embed_tokens(tokens_T)
        rotation = self.rotary(kv.positions, kv.context_lengths, x_TH.dtype)
        scale_T1 = None if self.query_scale is None else self.query_scale(kv.positions, x_TH.dtype)
        for layer in self.layers:
            x_TH = layer(x_TH, rotation, kv, scale_T1)
        return self.norm(x_TH)


class MistralForCausalLM(nn.Module):
    """The model with its head, which may share the embedding's weight."""

    def __init__(self, config: MistralConfig, backends: AttentionBackends) -> None:
        super().__init__()
        self.model = MistralModel(config, backends)
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


class MistralPipelineModel(DecoderPipelineModel):
    """Mistral as a pipeline runs it."""

    config_class = MistralConfig
    module_class = MistralForCausalLM
