"""Which tokens the grammars of a batch allow next, found in a thread while the model computes the step."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from pipezoo_core.context import TextContext

if TYPE_CHECKING:
    from llguidance import LLExecutor

__all__ = ["TokenMasker", "TokenMasks"]


@dataclass(frozen=True, slots=True)
class TokenMasks:
    """The masks of those contexts that have a grammar.

    Attributes:
        rows: where they are among the contexts.
        barred: bool [len(rows), W], on the host. Tokens from W on, padding of the model's head, are barred, too.
    """

    rows: list[int]
    barred: Tensor

    def of(self, places: Sequence[int]) -> TokenMasks:
        """Returns the masks of some of the contexts."""
        chosen = {row: i for i, row in enumerate(self.rows) if row in places}
        return TokenMasks([places.index(row) for row in chosen], self.barred[list(chosen.values())])

    def apply_(self, logits: Tensor) -> None:
        """Sets the logits of barred tokens to minus infinity.

        Args:
            logits: [B, V], a row per context.
        """
        barred = pad(self.barred.to(logits.device), (0, logits.shape[-1] - self.barred.shape[-1]), value=True)
        logits[self.rows] = logits[self.rows].masked_fill(barred, -torch.inf)


class TokenMasker:
    """Computes masks beside the model. A mask depends only on tokens that are there already.

    llguidance works outside the interpreter's lock, and on several requests at once.
    """

    @cached_property
    def _thread(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max_workers=1, thread_name_prefix="pipezoo-token-masks")

    @cached_property
    def _executor(self) -> LLExecutor:
        from llguidance import LLExecutor

        return LLExecutor()

    def start(self, contexts: Sequence[TextContext]) -> Future[TokenMasks] | None:
        """Begins with the masks of the next tokens of those that sample; returns None where none of them has a grammar.

        The contexts must not change before the result is there.
        """
        rows = [i for i, context in enumerate(contexts) if context.matcher is not None and context.samples]
        return self._thread.submit(self._masks, rows, [contexts[i] for i in rows]) if rows else None

    def _masks(self, rows: list[int], contexts: Sequence[TextContext]) -> TokenMasks:
        from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask_par

        matchers = [context.matcher for context in contexts if context.matcher is not None]
        bits = allocate_token_bitmask(len(matchers), matchers[0].num_tokens)
        fill_next_token_bitmask_par(self._executor, [(m.ll_matcher, i) for i, m in enumerate(matchers)], bits)
        unpacked = np.unpackbits(bits.view(np.uint8), axis=-1, count=matchers[0].num_tokens, bitorder="little")
        allowed = unpacked.view(np.bool_)
        for matcher, context, row in zip(matchers, contexts, allowed, strict=True):
            matcher.settle(row, stop_token_ids=context.stop_token_ids, may_end=context.may_end)
        return TokenMasks(rows, torch.from_numpy(~allowed))
