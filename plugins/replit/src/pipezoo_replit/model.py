"""MPT (MosaicML, 2023), which Replit's code models share. The reference is transformers' `modeling_mpt`.

What that leaves out is as in llm-foundry, MPT's own code: grouped heads, normalized queries and keys, learned
positions, biases, expansion ratio and logit scale.

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
    ColumnParallelLinear,
    KernelUse,
    LayerNorm,
    LMHead,
    ParallelLayerNorm,
    PositionEmbedding,
    RowParallelLinear,
    Split,
    VocabParallelEmbedding,
)
from pipezoo_replit.config import MptConfig

__all__ = ["MptForCausalLM", "MptPipelineModel"]


class MptAttention(nn.Module):
    """Queries, keys and values come from one matrix; they may be clipped, the first two then normalized."""

    def __init__(self, config: MptConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        self.clip_qkv = config.clip_qkv
        queries, keys = config.heads.queries, config.heads.keys
        self.Wqkv = ColumnParallelLinear(config.hidden_size, [queries, keys, keys], bias=config.bias)
        self.out_proj = RowParallelLinear(queries, config.hidden_size, bias=config.bias)
        self.q_ln = _parallel_norm(config, queries) if config.qk_ln else nn.Identity()
        self.k_ln = _parallel_norm(config, keys) if config.qk_ln else nn.Identity()
        self.attention = Attention(layer_idx, backends)

    def forward(self, x_TH: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        qkv = self.Wqkv(x_TH)
        if self.clip_qkv is not None:
            qkv = qkv.clamp(min=-self.clip_qkv, max=self.clip_qkv)
        q, k, v = qkv.split(self.Wqkv.sizes, dim=-1)
        return self.out_proj(self.attention(self.q_ln(q), self.k_ln(k), v, kv))

    def alive(self, kernels: KernelUse) -> list[int]:
        """See `Estimable`."""
        del kernels
        q, k, v = self.Wqkv.sizes
        made = [q + k + v] if self.clip_qkv is None else [q + k + v, q + k + v]
        return [*made, q] if isinstance(self.q_ln, nn.Identity) else [*made, q, k, q]


class MptBlock(nn.Module):
    """Attention, then the feed-forward layer, each on a normalized input and added to it."""

    def __init__(self, config: MptConfig, layer_idx: int, backends: AttentionBackends) -> None:
        super().__init__()
        self.norm_1 = _norm(config, config.hidden_size)
        self.attn = MptAttention(config, layer_idx, backends)
        self.norm_2 = _norm(config, config.hidden_size)
        self.ffn = MLP(config.hidden_size, config.intermediate_size, "gelu", bias=config.bias)

    def forward(self, x_TH: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        x_TH += self.attn(self.norm_1(x_TH), kv)
        x_TH += self.ffn(self.norm_2(x_TH))
        return x_TH


class MptModel(nn.Module):
    """Embedding, to which learned positions may be added; blocks, final norm."""

    def __init__(self, config: MptConfig, backends: AttentionBackends) -> None:
        super().__init__()
        self.wte = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.wpe = PositionEmbedding(config.max_seq_len, config.hidden_size) if config.learned_positions else None
        self.blocks = nn.ModuleList(MptBlock(config, i, backends) for i in range(config.num_layers))
        self.norm_f = _norm(config, config.hidden_size)

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        x_TH = self.wte(tokens_T)
        if self.wpe is not None:
            x_TH += self.wpe(kv.positions)
        for block in self.blocks:
            x_TH = block(x_TH, kv)
        return self.norm_f(x_TH)


class MptForCausalLM(nn.Module):
    """The model with its head, which may share the embedding's weight."""

    def __init__(self, config: MptConfig, backends: AttentionBackends) -> None:
        super().__init__()
        self.transformer = MptModel(config, backends)
        scale = 1.0 if config.logit_scale is None else config.logit_scale
        if config.tie_word_embeddings:
            self.lm_head = LMHead.sharing(self.transformer.wte, scale=scale)
        else:
            self.lm_head = LMHead(config.hidden_size, config.vocab_size, scale=scale)

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        """Maps tokens [T] to hidden states [T, H]."""
        return self.transformer(tokens_T, kv)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Maps hidden states [rows, H] to logits [rows, V]."""
        return self.lm_head(hidden)


def _norm(config: MptConfig, size: int) -> LayerNorm:
    return LayerNorm(size, config.layer_norm_epsilon, bias=config.bias)


def _parallel_norm(config: MptConfig, size: Split) -> ParallelLayerNorm:
    return ParallelLayerNorm(size, config.layer_norm_epsilon, bias=config.bias)


class MptPipelineModel(DecoderPipelineModel):
    """MPT as a pipeline runs it."""

    config_class = MptConfig
    module_class = MptForCausalLM
