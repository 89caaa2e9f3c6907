"""Granite 4 (IBM, 2025): Mamba-2 in most layers and attention in the others, each followed by experts or one layer.

The reference implementation is transformers' `modeling_granitemoehybrid`.

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
    KernelUse,
    LMHead,
    Mamba2,
    MergedLinear,
    RMSNorm,
    RotaryEmbedding,
    Router,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from pipezoo_granite.config import GraniteConfig

__all__ = ["GraniteForCausalLM", "GranitePipelineModel"]


class GraniteAttention(nn.Module):
    """Grouped-query attention, with rotary positions or without any."""

    def __init__(self, config: GraniteConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        queries, keys, bias = config.heads.queries, config.heads.keys, config.attention_bias
        parts = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        self.qkv_proj = MergedLinear(config.hidden_size, parts, bias=bias)
        self.o_proj = RowParallelLinear(queries, config.hidden_size, bias=bias)
        self.attention = Attention(layer_idx, backends)

    def forward(self, x_TH: Tensor, rotation: Rotation | None, kv: KVCacheInputs[Any]) -> Tensor:
        return self.o_proj(self.attention(*self.qkv_proj(x_TH), kv, rotation))

    def alive(self, kernels: KernelUse) -> list[int]:
        """See `Estimable`."""
        del kernels
        q, k, v = self.qkv_proj.parts.values()
        return [q + k + v, q]


class GraniteMixtureOfExperts(nn.Module):
    """A few experts for each token, whose weights add up to 1."""

    def __init__(self, config: GraniteConfig) -> None:
        super().__init__()
        assert config.routing is not None
        routing, hidden = config.routing, config.hidden_size
        self.router = Router(hidden, routing)
        self.experts = Experts(hidden, config.expert_size, routing.num_experts, routing.top_k, config.activation)

    def forward(self, x_TH: Tensor) -> Tensor:
        """Maps [T, H] to [T, H]."""
        return self.experts(x_TH, *self.router(x_TH))


class GraniteFeedForward(nn.Module):
    """A layer that all tokens go through, and experts beside it where the model has them."""

    def __init__(self, config: GraniteConfig) -> None:
        super().__init__()
        self.shared_mlp = GatedMLP(config.hidden_size, config.intermediate_size, config.activation)
        self.block_sparse_moe = None if config.routing is None else GraniteMixtureOfExperts(config)

    def forward(self, x_TH: Tensor) -> Tensor:
        """Maps [T, H] to [T, H]."""
        if self.block_sparse_moe is None:
            return self.shared_mlp(x_TH)
        y_TH = self.block_sparse_moe(x_TH)
        y_TH += self.shared_mlp(x_TH)
        return y_TH

    def alive(self, kernels: KernelUse) -> list[int]:
        """See `Estimable`."""
        shared = self.shared_mlp.alive(kernels)
        if self.block_sparse_moe is None:
            return shared
        hidden = self.shared_mlp.down_proj.out_features
        return max(self.block_sparse_moe.experts.alive(kernels), [hidden, *shared], key=sum)


class GraniteDecoderLayer(nn.Module):
    """A Mamba or attention, then the feed-forward layer, each on a normalized input and a part of it added."""

    def __init__(self, config: GraniteConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.has_state = config.has_state[layer_idx]
        if self.has_state:
            assert config.mamba is not None
            self.mamba = Mamba2(config.hidden_size, config.mamba, config.rms_norm_eps, layer_idx)
        else:
            self.self_attn = GraniteAttention(config, layer_idx, backends)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.feed_forward = GraniteFeedForward(config)
        self.scale = config.residual_scale

    def forward(self, x_TH: Tensor, rotation: Rotation | None, kv: KVCacheInputs[Any]) -> Tensor:
        x_TH.add_(self._mixed(self.input_layernorm(x_TH), rotation, kv), alpha=self.scale)
        x_TH.add_(self.feed_forward(self.post_attention_layernorm(x_TH)), alpha=self.scale)
        return x_TH

    def _mixed(self, x_TH: Tensor, rotation: Rotation | None, kv: KVCacheInputs[Any]) -> Tensor:
        mixed_TH: Tensor = self.mamba(x_TH, kv) if self.has_state else self.self_attn(x_TH, rotation, kv)
        return mixed_TH


class GraniteModel(nn.Module):
    """Embedding, decoder layers, final norm."""

    def __init__(self, config: GraniteConfig, backends: AttentionBackends) -> None:
        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size, scale=config.embedding_scale)
        rope = config.rope_parameters
        self.rotary = None if rope is None else RotaryEmbedding(rope, config.head_dim, config.max_position_embeddings)
        self.layers = nn.ModuleList(GraniteDecoderLayer(config, i, backends) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        x_TH = self.embed_tokens(tokens_T)
        rotation = None if self.rotary is None else self.rotary(kv.positions, kv.context_lengths, x_TH.dtype)
        for layer in self.layers:
            x_TH = layer(x_TH, rotation, kv)
        return self.norm(x_TH)


class GraniteForCausalLM(nn.Module):
    """The model with its head, which may share the embedding's weight."""

    def __init__(self, config: GraniteConfig, backends: AttentionBackends) -> None:
        super().__init__()
        self.model = GraniteModel(config, backends)
        if config.tie_word_embeddings:
            self.lm_head = LMHead.sharing(self.model.embed_tokens, scale=config.logit_scale)
        else:
            self.lm_head = LMHead(config.hidden_size, config.vocab_size, scale=config.logit_scale)

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        """Maps tokens [T] to hidden states [T, H]."""
        return self.model(tokens_T, kv)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Maps hidden states [rows, H] to logits [rows, V]."""
        return self.lm_head(hidden)


class GranitePipelineModel(DecoderPipelineModel):
    """Granite 4 as a pipeline runs it."""

    config_class = GraniteConfig
    module_class = GraniteForCausalLM
