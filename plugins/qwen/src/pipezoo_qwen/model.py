"""Qwen2 (Yang et al., 2024) and Qwen3 (Yang et al., 2025), which normalizes queries and keys; with experts or without.

The reference implementations are transformers' `modeling_qwen2`, `modeling_qwen3`, `modeling_qwen2_moe` and
`modeling_qwen3_moe`.

Shape suffixes: T tokens of all requests in a row, H hidden size, D head size.
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
from pipezoo_qwen.config import QwenConfig, QwenMixture

__all__ = ["QwenForCausalLM", "QwenPipelineModel"]


class QwenAttention(nn.Module):
    """Grouped-query attention with rotary positions, each head of queries and keys normalized before in Qwen3."""

    def __init__(self, config: QwenConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        queries, keys = config.heads.queries, config.heads.keys
        parts = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        self.qkv_proj = MergedLinear(config.hidden_size, parts, bias=config.qkv_bias)
        self.o_proj = RowParallelLinear(queries, config.hidden_size, bias=config.output_bias)
        self.q_norm = HeadNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = HeadNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.attention = Attention(layer_idx, backends)

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any]) -> Tensor:
        q, k, v = self.qkv_proj(x_TH)
        return self.o_proj(self.attention(self.q_norm(q), self.k_norm(k), v, kv, rotation))

    def alive(self, kernels: KernelUse) -> list[int]:
        """See `Estimable`."""
        del kernels
        q, k, v = self.qkv_proj.parts.values()
        return [q + k + v, q, k, q] if isinstance(self.q_norm, HeadNorm) else [q + k + v, q]


class QwenMixtureOfExperts(nn.Module):
    """A few experts for each token, and in Qwen2-MoE one for all, as much of it as a gate lets through."""

    def __init__(self, hidden: int, activation: str, mixture: QwenMixture) -> None:
        super().__init__()
        routing, shared = mixture.routing, mixture.shared_intermediate_size
        sizes = (hidden, mixture.intermediate_size, routing.num_experts, routing.top_k)
        self.gate = Router(hidden, routing)
        self.experts = Experts(*sizes, activation)
        self.shared_expert = None if shared is None else GatedMLP(hidden, shared, activation)
        self.shared_expert_gate = None if shared is None else Linear(hidden, 1)

    def forward(self, x_TH: Tensor) -> Tensor:
        """Maps [T, H] to [T, H]."""
        y_TH = self.experts(x_TH, *self.gate(x_TH))
        if self.shared_expert is not None and self.shared_expert_gate is not None:
            y_TH += self.shared_expert_gate(x_TH).sigmoid() * self.shared_expert(x_TH)
        return y_TH

    def alive(self, kernels: KernelUse) -> list[int]:
        """See `Estimable`."""
        experts = self.experts.alive(kernels)
        if self.shared_expert is None:
            return experts
        hidden = self.shared_expert.down_proj.out_features
        shared = self.shared_expert.alive(kernels)
        return max(
            experts, [hidden, hidden, *shared], key=sum
        )  # beside the experts' sum, and then what the gate leaves


def _feed_forward(config: QwenConfig, layer_idx: int) -> nn.Module:
    if config.mixture is not None and layer_idx in config.mixture.layers:
        return QwenMixtureOfExperts(config.hidden_size, config.activation, config.mixture)
    return GatedMLP(config.hidden_size, config.intermediate_size, config.activation)


class QwenDecoderLayer(nn.Module):
    """Attention, then the feed-forward layer, each on a normalized input and added to it."""

    def __init__(self, config: QwenConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = QwenAttention(config, layer_idx, backends)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = _feed_forward(config, layer_idx)

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any]) -> Tensor:
        x_TH += self.self_attn(self.input_layernorm(x_TH), rotation, kv)
        x_TH += self.mlp(self.post_attention_layernorm(x_TH))
        return x_TH


class QwenModel(nn.Module):
    """Embedding, decoder layers, final norm."""

    def __init__(self, config: QwenConfig, backends: AttentionBackends) -> None:
        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.rotary = RotaryEmbedding(config.rope_parameters, config.head_dim, config.max_position_embeddings)
        self.layers = nn.ModuleList(QwenDecoderLayer(config, i, backends) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        x_TH = self.embed_tokens(tokens_T)
        rotation = self.rotary(kv.positions, kv.context_lengths, x_TH.dtype)
        for layer in self.layers:
            x_TH = layer(x_TH, rotation, kv)
        return self.norm(x_TH)


class QwenForCausalLM(nn.Module):
    """The model with its head, which may share the embedding's weight."""

    def __init__(self, config: QwenConfig, backends: AttentionBackends) -> None:
        super().__init__()
        self.model = QwenModel(config, backends)
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


class QwenPipelineModel(DecoderPipelineModel):
    """Qwen as a pipeline runs it."""

    config_class = QwenConfig
    module_class = QwenForCausalLM
