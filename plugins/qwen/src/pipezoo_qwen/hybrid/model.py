"""Qwen3-Next (Qwen team, 2025) and Qwen3.5: gated DeltaNets in most layers, gated attention in the others.

The reference implementations are transformers' `modeling_qwen3_next`, `modeling_qwen3_5` and `modeling_qwen3_5_moe`.

Shape suffixes: T tokens of all requests in a row, H hidden size.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pipezoo_core.attention import Attention, AttentionBackends, Rotation
from pipezoo_core.decoder import DecoderPipelineModel
from pipezoo_core.kv_cache import KVCacheInputs
from pipezoo_core.layers import (
    GatedMLP,
    HeadNorm,
    KernelUse,
    Linear,
    LMHead,
    MergedLinear,
    RMSNorm,
    RotaryEmbedding,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from pipezoo_core.recurrence import GatedDeltaRule, GatedRMSNorm, ShortConvolution
from pipezoo_qwen.hybrid.config import QwenHybridConfig
from pipezoo_qwen.model import QwenMixtureOfExperts

__all__ = ["QwenHybridForCausalLM", "QwenHybridPipelineModel"]


class GatedAttention(nn.Module):
    """Grouped-query attention over normalized heads, of which a part is rotated; a gate lets its result through."""

    def __init__(self, config: QwenHybridConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        queries, keys = config.heads.queries, config.heads.keys
        parts = {"q_proj": queries, "q_gate": queries, "k_proj": keys, "v_proj": keys}
        self.qkv_proj = MergedLinear(config.hidden_size, parts, bias=config.attention_bias)
        self.o_proj = RowParallelLinear(queries, config.hidden_size, bias=config.attention_bias)
        self.q_norm = HeadNorm(config.head_dim, config.rms_norm_eps, offset=1.0)
        self.k_norm = HeadNorm(config.head_dim, config.rms_norm_eps, offset=1.0)
        self.attention = Attention(layer_idx, backends)

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any]) -> Tensor:
        q, gate, k, v = self.qkv_proj(x_TH)
        y = self.attention(self.q_norm(q), self.k_norm(k), v, kv, rotation)
        y *= gate.sigmoid()
        return self.o_proj(y)

    def alive(self, kernels: KernelUse) -> list[int]:
        """See `Estimable`. Without kernels, a norm's input, what is left of it and the result are float32."""
        q, gate, k, v = self.qkv_proj.parts.values()
        norm = 0 if kernels.is_native else kernels.widened + 2 * kernels.wide
        return [q + gate + k + v, *max([q, k, q], [norm * q], [q, norm * k], key=sum)]


class GatedDeltaNet(nn.Module):
    """A short convolution over queries, keys and values, and what these read of a state that the layer keeps.

    Yang, Kautz and Hatamizadeh, 2024: "Gated Delta Networks".
    """

    def __init__(self, config: QwenHybridConfig, layer_idx: int) -> None:
        super().__init__()
        sizes = config.delta_net
        values = sizes.num_heads * sizes.value_size
        parts = {
            "in_proj_qkv": sizes.num_channels,
            "in_proj_z": values,
            "in_proj_b": sizes.num_heads,
            "in_proj_a": sizes.num_heads,
        }
        self.in_proj = MergedLinear(config.hidden_size, parts)
        self.conv1d = ShortConvolution(sizes.num_channels, sizes.num_taps, activation=True)
        self.rule = GatedDeltaRule(sizes.num_key_heads, sizes.num_heads, sizes.key_size, sizes.value_size)
        self.norm = GatedRMSNorm(sizes.value_size, config.rms_norm_eps)
        self.out_proj = Linear(values, config.hidden_size)
        self.layer_idx = layer_idx

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any]) -> Tensor:
        del rotation
        qkv, z, b, a = self.in_proj(x_TH)
        inputs, matrices = kv.states[self.layer_idx]
        y = self.norm(self.rule(self.conv1d(qkv, inputs, kv.state_step), a, b, matrices, kv.state_step), z)
        return self.out_proj(y)

    def alive(self, kernels: KernelUse) -> list[int]:
        """See `Estimable`. Without kernels, what the convolution, the rule and the norm compute with is float32."""
        qkv, z, b, a = self.in_proj.parts.values()
        heads, key_size, _ = self.rule.state_shape
        if kernels.is_native:
            return [qkv + z + b + a, qkv, z]
        wide, widened = kernels.wide, kernels.widened
        convolution = [wide * qkv] * 4  # inputs and their sum, and of a tap the inputs and products
        rule = [qkv, widened * qkv, *[wide * heads * key_size] * 2, wide * z, z]
        norm = [z, widened * z, *[wide * z] * 3]
        return [qkv + z + b + a, *max(convolution, rule, norm, key=sum)]


class QwenHybridDecoderLayer(nn.Module):
    """A DeltaNet or attention, then the feed-forward layer, each on a normalized input and added to it."""

    def __init__(self, config: QwenHybridConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        hidden, mixture = config.hidden_size, config.mixture
        self.input_layernorm = RMSNorm(hidden, config.rms_norm_eps, offset=1.0)
        self.has_state = config.has_state[layer_idx]
        if self.has_state:
            self.linear_attn = GatedDeltaNet(config, layer_idx)
        else:
            self.self_attn = GatedAttention(config, layer_idx, backends)
        self.post_attention_layernorm = RMSNorm(hidden, config.rms_norm_eps, offset=1.0)
        if mixture is not None and layer_idx in mixture.layers:
            self.mlp: nn.Module = QwenMixtureOfExperts(hidden, config.activation, mixture)
        else:
            self.mlp = GatedMLP(hidden, config.intermediate_size, config.activation)

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any]) -> Tensor:
        mixer = self.linear_attn if self.has_state else self.self_attn
        x_TH += mixer(self.input_layernorm(x_TH), rotation, kv)
        x_TH += self.mlp(self.post_attention_layernorm(x_TH))
        return x_TH


class QwenHybridModel(nn.Module):
    """Embedding, decoder layers, final norm."""

    def __init__(self, config: QwenHybridConfig, backends: AttentionBackends) -> None:
        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.rotary = RotaryEmbedding(config.rope_parameters, config.head_dim, config.max_position_embeddings)
        self.layers = nn.ModuleList(QwenHybridDecoderLayer(config, i, backends) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, offset=1.0)

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        x_TH = self.embed_tokens(tokens_T)
        rotation = self.rotary(kv.positions, kv.context_lengths, x_TH.dtype)
        for layer in self.layers:
            x_TH = layer(x_TH, rotation, kv)
        return self.norm(x_TH)


class QwenHybridForCausalLM(nn.Module):
    """The model with its head, which may share the embedding's weight."""

    def __init__(self, config: QwenHybridConfig, backends: AttentionBackends) -> None:
        super().__init__()
        self.model = QwenHybridModel(config, backends)
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


class QwenHybridPipelineModel(DecoderPipelineModel):
    """A hybrid Qwen as a pipeline runs it."""

    config_class = QwenHybridConfig
    module_class = QwenHybridForCausalLM
