"""LFM2 (Liquid AI, 2025): short convolutions between gates in most layers, attention in the others.

The reference implementations are transformers' `modeling_lfm2` and `modeling_lfm2_moe`.

Shape suffixes: T tokens of all requests in a row, H hidden size.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pipezoo_core.attention import Attention, AttentionBackends, Rotation
from pipezoo_core.decoder import DecoderPipelineModel
from pipezoo_core.kv_cache import KVCacheInputs
from pipezoo_core.layers import (
    Experts,
    GatedMLP,
    HeadNorm,
    KernelUse,
    Linear,
    LMHead,
    MergedLinear,
    RMSNorm,
    RotaryEmbedding,
    Router,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from pipezoo_core.recurrence import ShortConvolution
from pipezoo_lfm2.config import Lfm2Config, Lfm2Mixture

__all__ = ["Lfm2ForCausalLM", "Lfm2PipelineModel"]


class Lfm2Attention(nn.Module):
    """Grouped-query attention with rotary positions, each head of queries and keys normalized before."""

    def __init__(self, config: Lfm2Config, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        queries, keys = config.heads.queries, config.heads.keys
        self.qkv_proj = MergedLinear(config.hidden_size, {"q_proj": queries, "k_proj": keys, "v_proj": keys})
        self.out_proj = RowParallelLinear(queries, config.hidden_size)
        self.q_layernorm = HeadNorm(config.head_dim, config.norm_eps)
        self.k_layernorm = HeadNorm(config.head_dim, config.norm_eps)
        self.attention = Attention(layer_idx, backends)

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any]) -> Tensor:
        q, k, v = self.qkv_proj(x_TH)
        return self.out_proj(self.attention(self.q_layernorm(q), self.k_layernorm(k), v, kv, rotation))

    def alive(self, kernels: KernelUse) -> list[int]:
        """See `Estimable`."""
        del kernels
        q, k, v = self.qkv_proj.parts.values()
        return [q + k + v, q, k, q]


class Lfm2ShortConvolution(nn.Module):
    """`out(C · conv(B · x))`, where B, C and x are what one product makes of the input."""

    def __init__(self, config: Lfm2Config, layer_idx: int) -> None:
        super().__init__()
        size, bias = config.hidden_size, config.conv_bias
        self.in_proj = Linear(size, 3 * size, bias=bias)
        self.conv = ShortConvolution(size, config.num_taps, bias=bias)
        self.out_proj = Linear(size, size, bias=bias)
        self.layer_idx = layer_idx

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any]) -> Tensor:
        del rotation
        before, behind, x_TH = self.in_proj(x_TH).chunk(3, dim=-1)
        (state,) = kv.states[self.layer_idx]
        return self.out_proj(behind * self.conv(before * x_TH, state, kv.state_step))

    def alive(self, kernels: KernelUse) -> list[int]:
        """See `Estimable`. In torch, the convolution's inputs, sum, a tap's inputs and their products are float32."""
        size = self.out_proj.in_features
        return [3 * size, size, size] if kernels.is_native else [3 * size, size, *[kernels.wide * size] * 4]


class Lfm2MixtureOfExperts(nn.Module):
    """A few experts for each token."""

    def __init__(self, hidden: int, mixture: Lfm2Mixture) -> None:
        super().__init__()
        routing = mixture.routing
        self.gate = Router(hidden, routing, correction=mixture.has_correction)
        self.experts = Experts(hidden, mixture.expert_size, routing.num_experts, routing.top_k, "silu")

    def forward(self, x_TH: Tensor) -> Tensor:
        """Maps [T, H] to [T, H]."""
        return self.experts(x_TH, *self.gate(x_TH))


def _feed_forward(config: Lfm2Config, layer_idx: int) -> nn.Module:
    if config.mixture is not None and layer_idx >= config.mixture.num_dense_layers:
        return Lfm2MixtureOfExperts(config.hidden_size, config.mixture)
    return GatedMLP(config.hidden_size, config.intermediate_size, "silu")


class Lfm2DecoderLayer(nn.Module):
    """Attention or a convolution, then the feed-forward layer, each on a normalized input and added to it."""

    def __init__(self, config: Lfm2Config, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        self.operator_norm = RMSNorm(config.hidden_size, config.norm_eps)
        if config.has_attention[layer_idx]:
            self.self_attn = Lfm2Attention(config, layer_idx, backends)
        else:
            self.conv = Lfm2ShortConvolution(config, layer_idx)
        self.ffn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.feed_forward = _feed_forward(config, layer_idx)
        self.has_attention = config.has_attention[layer_idx]

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any]) -> Tensor:
        operator = self.self_attn if self.has_attention else self.conv
        x_TH += operator(self.operator_norm(x_TH), rotation, kv)
        x_TH += self.feed_forward(self.ffn_norm(x_TH))
        return x_TH


class Lfm2Model(nn.Module):
    """Embedding, decoder layers, and a norm that is the last one, though its name says otherwise."""

    def __init__(self, config: Lfm2Config, backends: AttentionBackends) -> None:
        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.rotary = RotaryEmbedding(
            config.rope_parameters, config.head_dim, config.max_position_embeddings, config.head_dim
        )
        self.layers = nn.ModuleList(Lfm2DecoderLayer(config, i, backends) for i in range(config.num_layers))
        self.embedding_norm = RMSNorm(config.hidden_size, config.norm_eps)

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        x_TH = self.embed_tokens(tokens_T)
        rotation = self.rotary(kv.positions, kv.context_lengths, x_TH.dtype)
        for layer in self.layers:
            x_TH = layer(x_TH, rotation, kv)
        return self.embedding_norm(x_TH)


class Lfm2ForCausalLM(nn.Module):
    """The model with its head, which may share the embedding's weight."""

    def __init__(self, config: Lfm2Config, backends: AttentionBackends) -> None:
        super().__init__()
        self.model = Lfm2Model(config, backends)
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


class Lfm2PipelineModel(DecoderPipelineModel):
    """LFM2 as a pipeline runs it."""

    config_class = Lfm2Config
    module_class = Lfm2ForCausalLM
