"""What a decoder-only model is given in one step."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pipezoo_core.interfaces import ModelInputs
from pipezoo_core.kv_cache import KVCacheInputs

__all__ = ["DecoderInputs"]


class DecoderInputs(ModelInputs):
    """Inputs of a decoder-only model.

    Args:
        tokens: int64 [T], the chunks of all requests one after another.
        input_row_offsets: int64 [B + 1], where each request's chunk begins.
        logit_rows: int64 [rows], the rows that get logits.
        logit_offsets: int64 [B + 1], where each request's rows begin in `logit_rows`.
        kv_cache_inputs: the step's view of the KV cache.
    """

    def __init__(
        self,
        tokens: Tensor,
        input_row_offsets: Tensor,
        logit_rows: Tensor,
        logit_offsets: Tensor,
        kv_cache_inputs: KVCacheInputs[Any],
    ) -> None:
        self.tokens = tokens
        self.input_row_offsets = input_row_offsets
        self.logit_rows = logit_rows
        self.logit_offsets = logit_offsets
        self.kv_cache_inputs = kv_cache_inputs
