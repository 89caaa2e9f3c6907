"""DeepSeek-V2 and V3 (DeepSeek-AI, 2024): latent attention, and a mixture of routed and shared experts.

The reference implementations are transformers' `modeling_deepseek_v2` and `modeling_deepseek_v3`.

Shape suffixes: T tokens of all requests in a row, H hidden size, N heads, Q numbers per head that are not rotated, R
that are, V of values, L latent size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pipezoo_core.attention import Attention, AttentionBackends, Rotation
from pipezoo_core.decoder import DecoderPipelineModel
from pipezoo_core.kv_cache import KVCacheInputs
from pipezoo_core.layers import (
    ColumnParallelLinear,
    Experts,
    GatedMLP,
    KernelUse,
    LatentHeads,
    Linear,
    LMHead,
    RMSNorm,
    RotaryEmbedding,
    Router,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from pipezoo_deepseek.config import DeepseekConfig

__all__ = ["DeepseekForCausalLM", "DeepseekPipelineModel"]

_LATENT_EPS = 1e-6  # whatever the config says of the other norms


class DeepseekAttention(nn.Module):
    """Multi-head latent attention: a key for all heads, whose first numbers are the latent, and the value as well."""

    def __init__(self, config: DeepseekConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        hidden, rank, bias = config.hidden_size, config.query_rank, config.attention_bias
        self._has_query_latent = rank is not None
        self._query_sizes = (config.head_dim - config.rotary_dim, config.rotary_dim)
        self._key_sizes = (config.latent_size, config.rotary_dim)
        if rank is None:
            self.q_proj = ColumnParallelLinear(hidden, config.heads.queries)
        else:
            self.q_a_proj = Linear(hidden, rank, bias=bias)
            self.q_a_layernorm = RMSNorm(rank, _LATENT_EPS)
            self.q_b_proj = ColumnParallelLinear(rank, config.heads.queries)
        self.kv_a_proj_with_mqa = Linear(hidden, sum(self._key_sizes), bias=bias)
        self.kv_a_layernorm = RMSNorm(config.latent_size, _LATENT_EPS)
        self.kv_b_proj = LatentHeads(config.heads, self._query_sizes[0], config.value_dim, config.latent_size)
        self.o_proj = RowParallelLinear(config.value_heads.queries, hidden, bias=bias)
        self.attention = Attention(layer_idx, backends)

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any]) -> Tensor:
        latent_TL, key_TR = self.kv_a_proj_with_mqa(x_TH).split(self._key_sizes, dim=-1)
        k = torch.cat((self.kv_a_layernorm(latent_TL), key_TR), dim=-1)
        sums = self.attention(self._queries(x_TH), k, None, kv, rotation)
        sums_TNL = sums.unflatten(-1, (-1, self._key_sizes[0]))
        return self.o_proj(self.kv_b_proj.values(sums_TNL).flatten(1))

    def _queries(self, x_TH: Tensor) -> Tensor:
        """Returns [T, N · (L + R)]."""
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_TH))) if self._has_query_latent else self.q_proj(x_TH)
        plain_TNQ, rotary_TNR = q.unflatten(-1, (-1, sum(self._query_sizes))).split(self._query_sizes, dim=-1)
        latents_TNL = self.kv_b_proj.queries(plain_TNQ)
        return torch.cat((latents_TNL, rotary_TNR), dim=-1).flatten(1)

    def alive(self, kernels: KernelUse) -> list[int]:
        """See `Estimable`."""
        del kernels
        num_heads, (latent, rotated) = self.kv_b_proj.out_features // sum(self.kv_b_proj.sizes), self._key_sizes
        queries = [num_heads * size for size in (sum(self._query_sizes), latent, latent + rotated)]
        return [latent + rotated, latent, latent + rotated, *queries]


class DeepseekMoE(nn.Module):
    """Experts that a router chooses, and experts for every token, which are one feed-forward layer."""

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        hidden, size, routing = config.hidden_size, config.expert_size, config.routing
        self.gate = Router(hidden, routing, correction=config.has_correction)
        self.experts = Experts(hidden, size, routing.num_experts, routing.top_k, config.activation)
        self.shared_experts = GatedMLP(
            hidden, size * config.num_shared_experts, config.activation, bias=config.mlp_bias
        )

    def forward(self, x_TH: Tensor) -> Tensor:
        y_TH = self.experts(x_TH, *self.gate(x_TH))
        y_TH += self.shared_experts(x_TH)
        return y_TH

    def alive(self, kernels: KernelUse) -> list[int]:
        """See `Estimable`."""
        hidden = self.shared_experts.down_proj.out_features
        shared = self.shared_experts.alive(kernels)
        return max(self.experts.alive(kernels), [hidden, *shared], key=sum)


class DeepseekDecoderLayer(nn.Module):
    """Attention, then the feed-forward layer or the experts, each on a normalized input and added to it."""

    def __init__(self, config: DeepseekConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = DeepseekAttention(config, layer_idx, backends)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if layer_idx < config.num_dense_layers:
            self.mlp: nn.Module = GatedMLP(
                config.hidden_size, config.intermediate_size, config.activation, bias=config.mlp_bias
            )
        else:
            self.mlp = DeepseekMoE(config)

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any]) -> Tensor:
        x_TH += self.self_attn(self.input_layernorm(x_TH), rotation, kv)
        x_TH += self.mlp(self.post_attention_layernorm(x_TH))
        return x_TH


class DeepseekModel(nn.Module):
    """Embedding, decoder layers, final norm."""

    def __init__(self, config: DeepseekConfig, backends: AttentionBackends) -> None:
        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.rotary = RotaryEmbedding(config.rope_parameters, config.rotary_dim, config.max_position_embeddings)
        self.layers = nn.ModuleList(DeepseekDecoderLayer(config, i, backends) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        x_TH = self.embed_tokens(tokens_T)
        rotation = self.rotary(kv.positions, kv.context_lengths, x_TH.dtype)
        for layer in self.layers:
            x_TH = layer(x_TH, rotation, kv)
        return self.norm(x_TH)


class DeepseekForCausalLM(nn.Module):
    """The model with its head, which may share the embedding's weight."""

    def __init__(self, config: DeepseekConfig, backends: AttentionBackends) -> None:
        super().__init__()
        self.model = DeepseekModel(config, backends)
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


class DeepseekPipelineModel(DecoderPipelineModel):
    """DeepSeek as a pipeline runs it."""

    config_class = DeepseekConfig
    module_class = DeepseekForCausalLM
