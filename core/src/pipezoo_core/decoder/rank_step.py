"""One step as rank 0 of a model sends it to the other ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from pipezoo_core.decoder.inputs import DecoderInputs
from pipezoo_core.kv_cache import RaggedBatch

__all__ = ["RankStep"]


@dataclass(frozen=True, slots=True)
class RankStep:
    """All that another rank needs to know of a step, on the host.

    Attributes:
        tokens: the chunks of all requests one after another.
        logit_rows: the rows that get logits.
        lora_ids: of each request its adapter's slot, or `NO_LORA`; empty where no request has an adapter.
        lora_ranks: of each request its adapter's rank; empty likewise.
        batch: the requests.
    """

    tokens: list[int]
    logit_rows: list[int]
    lora_ids: list[int]
    lora_ranks: list[int]
    batch: RaggedBatch

    @classmethod
    def of(cls, inputs: DecoderInputs) -> Self:
        """Returns the step that has these inputs."""
        return cls(inputs.tokens.tolist(), inputs.logit_rows.tolist(), *inputs.loras, inputs.kv_cache.batch)

    def as_lists(self) -> list[list[int]]:
        """Writes the step as lists of whole numbers, which `from_lists` reads."""
        return [self.tokens, self.logit_rows, self.lora_ids, self.lora_ranks, *self.batch.as_lists()]

    @classmethod
    def from_lists(cls, lists: Sequence[list[int]]) -> Self:
        """Reads what `as_lists` has written."""
        tokens, logit_rows, lora_ids, lora_ranks, *batch = lists
        return cls(tokens, logit_rows, lora_ids, lora_ranks, RaggedBatch.from_lists(batch))
