"""gpt-oss (OpenAI, 2025): a mixture of experts, with attention that has sinks and, in every other layer, a window.

The reference implementation is transformers' `modeling_gpt_oss`.

Shape suffixes: T tokens of all requests in a row, H hidden size, N query heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pipezoo_core.attention import Attention, AttentionBackends, Rotation
from pipezoo_core.decoder import DecoderPipelineModel
from pipezoo_core.distributed import TensorParallelGroup
from pipezoo_core.kv_cache import KVCacheInputs
from pipezoo_core.layers import (
    Experts,
    Heads,
    LMHead,
    MergedLinear,
    RMSNorm,
    RotaryEmbedding,
    Router,
    RowParallelLinear,
    Shard,
    VocabParallelEmbedding,
)
from pipezoo_gpt_oss.config import GptOssConfig

__all__ = ["GptOssForCausalLM", "GptOssPipelineModel"]


class Sinks(nn.Module):
    """A learned score for each query head, which takes a part of the attention and gives nothing (Xiao et al., 2023).

    Attributes:
        shards: this rank's heads.
    """

    def __init__(self, heads: Heads) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads.num_heads))
        self.shards: dict[str, Shard] = {}
        self._heads = heads

    def forward(self) -> Tensor:
        """Returns the scores [N]."""
        return self.weight

    def shard(self, group: TensorParallelGroup) -> None:
        """Keeps this rank's heads."""
        queries, _ = self._heads.part(group.rank, group.size)
        self.shards = {"weight": Shard(0, (queries,))}
        self.weight = nn.Parameter(self.weight[queries], requires_grad=False)


class GptOssAttention(nn.Module):
    """Grouped-query attention with rotary positions and sinks."""

    def __init__(self, config: GptOssConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        queries, keys = config.heads.queries, config.heads.keys
        parts = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        self.qkv_proj = MergedLinear(config.hidden_size, parts, bias=config.attention_bias)
        self.o_proj = RowParallelLinear(queries, config.hidden_size, bias=config.attention_bias)
        self.sinks = Sinks(config.heads)
        self.attention = Attention(layer_idx, backends)

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any]) -> Tensor:
        q, k, v = self.qkv_proj(x_TH)
        return self.o_proj(self.attention(q, k, v, kv, rotation, self.sinks()))


class GptOssMLP(nn.Module):
    """Experts, and the router that chooses a few of them for each token."""

    def __init__(self, config: GptOssConfig) -> None:
        super().__init__()
        routing, sizes = config.routing, (config.hidden_size, config.intermediate_size)
        self.router = Router(config.hidden_size, routing, bias=True)
        self.experts = Experts(*sizes, routing.num_experts, routing.top_k, config.gate, bias=True)

    def forward(self, x_TH: Tensor) -> Tensor:
        return self.experts(x_TH, *self.router(x_TH))


class GptOssDecoderLayer(nn.Module):
    """Attention, then the experts, each on a normalized input and added to it."""

    def __init__(self, config: GptOssConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = GptOssAttention(config, layer_idx, backends)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GptOssMLP(config)

    def forward(self, x_TH: Tensor, rotation: Rotation, kv: KVCacheInputs[Any]) -> Tensor:
        x_TH += self.self_attn(self.input_layernorm(x_TH), rotation, kv)
        x_TH += self.mlp(self.post_attention_layernorm(x_TH))
        return x_TH


class GptOssModel(nn.Module):
    """Embedding, decoder layers, final norm."""

    def __init__(self, config: GptOssConfig, backends: AttentionBackends) -> None:
        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.rotary = RotaryEmbedding(config.rope_parameters, config.head_dim, config.max_position_embeddings)
        self.layers = nn.ModuleList(GptOssDecoderLayer(config, i, backends) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        x_TH = self.embed_tokens(tokens_T)
        rotation = self.rotary(kv.positions, kv.context_lengths, x_TH.dtype)
        for layer in self.layers:
            x_TH = layer(x_TH, rotation, kv)
        return self.norm(x_TH)


class GptOssForCausalLM(nn.Module):
    """The model with its head, which may share the embedding's weight."""

    def __init__(self, config: GptOssConfig, backends: AttentionBackends) -> None:
        super().__init__()
        self.model = GptOssModel(config, backends)
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


class GptOssPipelineModel(DecoderPipelineModel):
    """gpt-oss as a pipeline runs it."""

    config_class = GptOssConfig
    module_class = GptOssForCausalLM
