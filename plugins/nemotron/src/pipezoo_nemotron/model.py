"""Nemotron-H (NVIDIA, 2025): each layer is a Mamba-2, attention without positions, a feed-forward layer, or experts.

The reference implementation is transformers' `modeling_nemotron_h`.

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
    Experts,
    KernelUse,
    Linear,
    LMHead,
    Mamba2,
    MergedLinear,
    RMSNorm,
    Router,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from pipezoo_nemotron.config import ATTENTION, MAMBA, MLP_LAYER, NemotronConfig, NemotronMixture

__all__ = ["NemotronForCausalLM", "NemotronPipelineModel"]


class NemotronAttention(nn.Module):
    """Grouped-query attention that knows no positions."""

    def __init__(self, config: NemotronConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        queries, keys = config.heads.queries, config.heads.keys
        self.qkv_proj = MergedLinear(config.hidden_size, {"q_proj": queries, "k_proj": keys, "v_proj": keys})
        self.o_proj = RowParallelLinear(queries, config.hidden_size)
        self.attention = Attention(layer_idx, backends)

    def forward(self, x_TH: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        return self.o_proj(self.attention(*self.qkv_proj(x_TH), kv))


class NemotronMoE(nn.Module):
    """A few experts for each token, of a row or of its latent, and one that all tokens go through."""

    def __init__(self, config: NemotronConfig, mixture: NemotronMixture) -> None:
        super().__init__()
        hidden, bias, routing = config.hidden_size, config.mlp_bias, mixture.routing
        self.gate = Router(hidden, routing, correction=True)
        self.has_latent = mixture.latent_size is not None
        latent = mixture.latent_size or hidden
        sizes = (latent, mixture.expert_size, routing.num_experts, routing.top_k)
        self.experts = Experts(*sizes, config.activation, gated=False)
        self.shared_experts = MLP(hidden, mixture.shared_size, config.activation, bias=bias)
        if self.has_latent:
            self.fc1_latent_proj = Linear(hidden, latent, bias=bias)
            self.fc2_latent_proj = Linear(latent, hidden, bias=bias)

    def forward(self, x_TH: Tensor) -> Tensor:
        """Maps [T, H] to [T, H]."""
        y_TH = self._routed(x_TH)
        y_TH += self.shared_experts(x_TH)
        return y_TH

    def _routed(self, x_TH: Tensor) -> Tensor:
        indices_TK, weights_TK = self.gate(x_TH)
        if not self.has_latent:
            return self.experts(x_TH, indices_TK, weights_TK)
        return self.fc2_latent_proj(self.experts(self.fc1_latent_proj(x_TH), indices_TK, weights_TK))

    def alive(self, kernels: KernelUse) -> list[int]:
        """See `Estimable`."""
        hidden = self.gate.weight.shape[1]
        of_experts = self.experts.alive(kernels)
        if self.has_latent:
            latent = self.fc1_latent_proj.out_features
            of_experts = max([latent, *of_experts], [latent, hidden], key=sum)
        return max(of_experts, [hidden, *self.shared_experts.alive(kernels)], key=sum)


class NemotronLayer(nn.Module):
    """One thing that is computed of a normalized input, and added to it."""

    def __init__(self, config: NemotronConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.has_cache = config.layers[layer_idx] is not None
        self.mixer = _mixer(config, layer_idx, backends)

    def forward(self, x_TH: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        x_TH += self._mixed(self.norm(x_TH), kv)
        return x_TH

    def _mixed(self, x_TH: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        mixed_TH: Tensor = self.mixer(x_TH, kv) if self.has_cache else self.mixer(x_TH)
        return mixed_TH


def _mixer(config: NemotronConfig, layer_idx: int, backends: AttentionBackends) -> nn.Module:
    kind, hidden = config.kinds[layer_idx], config.hidden_size
    if kind == ATTENTION:
        return NemotronAttention(config, layer_idx, backends)
    if kind == MAMBA:
        assert config.mamba is not None
        return Mamba2(hidden, config.mamba, config.rms_norm_eps, layer_idx)
    if kind == MLP_LAYER:
        return MLP(hidden, config.intermediate_size, config.activation, bias=config.mlp_bias)
    assert config.mixture is not None
    return NemotronMoE(config, config.mixture)


class NemotronModel(nn.Module):
    """Embedding, layers, final norm."""

    def __init__(self, config: NemotronConfig, backends: AttentionBackends) -> None:
        super().__init__()
        self.embeddings = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(NemotronLayer(config, i, backends) for i in range(config.num_layers))
        self.norm_f = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        x_TH = self.embeddings(tokens_T)
        for layer in self.layers:
            x_TH = layer(x_TH, kv)
        return self.norm_f(x_TH)


class NemotronForCausalLM(nn.Module):
    """The model with its head, which may share the embedding's weight."""

    def __init__(self, config: NemotronConfig, backends: AttentionBackends) -> None:
        super().__init__()
        self.model = NemotronModel(config, backends)
        if config.tie_word_embeddings:
            self.lm_head = LMHead.sharing(self.model.embeddings)
        else:
            self.lm_head = LMHead(config.hidden_size, config.vocab_size)

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        """Maps tokens [T] to hidden states [T, H]."""
        return self.model(tokens_T, kv)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Maps hidden states [rows, H] to logits [rows, V]."""
        return self.lm_head(hidden)


class NemotronPipelineModel(DecoderPipelineModel):
    """Nemotron-H as a pipeline runs it."""

    config_class = NemotronConfig
    module_class = NemotronForCausalLM
