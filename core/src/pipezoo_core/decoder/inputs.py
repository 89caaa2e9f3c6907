"""What a decoder-only model is given in one step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from pipezoo_core.context import TextContext
from pipezoo_core.interfaces import ModelInputs
from pipezoo_core.kv_cache import KVCacheInputs, as_tensors

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

    @classmethod
    def of_chunks(
        cls, contexts: Sequence[TextContext], kv: KVCacheInputs[Any], *, num_logits: int | None, device: torch.device
    ) -> Self:
        """Makes inputs of the contexts' chunks.

        A context that echoes gets the logits of its whole chunk, the others of their last `num_logits` tokens where
        they have so many, and of a draft and the token before it; None is the whole chunk. With `num_logits=1` and
        chunks of 1 and 3 tokens, the second of a request that echoes, `logit_rows` is [0, 1, 2, 3] and `logit_offsets`
        [0, 1, 4].
        """
        tokens: list[int] = []
        rows: list[int] = []
        offsets = [0]
        for context in contexts:
            tokens += context.chunk
            wanted = context.active_length
            if num_logits is not None and not context.wants_prompt_logits:
                wanted = min(max(num_logits, 1 + len(context.draft)), wanted)
            rows += range(len(tokens) - wanted, len(tokens))
            offsets.append(len(rows))
        token_ids, logit_rows, logit_offsets = as_tensors((tokens, rows, offsets), device)
        return cls(token_ids, kv.input_row_offsets, logit_rows, logit_offsets, kv)

    @classmethod
    def of_next_tokens(cls, tokens: Tensor, previous: ModelInputs) -> Self:
        """Makes inputs of one new token per request, int64 [B], for the requests of an earlier step."""
        assert previous.kv_cache_inputs is not None
        rows = torch.arange(len(tokens) + 1, dtype=torch.int64, device=tokens.device)
        inputs = cls(tokens, rows, rows[:-1], rows, previous.kv_cache_inputs)
        inputs.lora_ids, inputs.lora_ranks = previous.lora_ids, previous.lora_ranks
        return inputs

    @property
    def kv_cache(self) -> KVCacheInputs[Any]:
        """The step's view of the KV cache, which a decoder always has."""
        assert self.kv_cache_inputs is not None
        return self.kv_cache_inputs

    @property
    def loras(self) -> tuple[list[int], list[int]]:
        """Each request's adapter, as `lora_ids` and `lora_ranks`; both empty where no request has one."""
        if self.lora_ids is None or self.lora_ranks is None:
            return [], []
        return self.lora_ids.tolist(), self.lora_ranks.tolist()
