"""Which rows of a step's logits say what follows, token by token of the drafts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipezoo_core.context import TextContext
from pipezoo_core.interfaces import ModelOutputs

__all__ = ["DraftRows"]


class DraftRows:
    """Finds the logits that follow each request's last known token, as drafts come true.

    Three requests of a step are fed `a`, `b p q` and `c r`, of which `p`, `q` and `r` are drafts. The logits have the
    rows `a b p q c r`. What follows first is in the rows 0, 1 and 4. Where `p` follows `b`, and `s` follows `c`, row 2
    says what comes next, for the second request alone.

    It keeps no other logits than those of the step. The memory plan counts one more row per request, so the last rows
    that it returned have to be let go of before it is asked for the next.

    Args:
        outputs: of the step, with the logits of each draft, and of the token before it.
        batch: the step's requests, before they advance.
    """

    def __init__(self, outputs: ModelOutputs, batch: Sequence[TextContext]) -> None:
        assert outputs.logit_offsets is not None
        self._logits, self._offsets = outputs.logits, outputs.logit_offsets
        self._batch = batch
        ends = outputs.logit_offsets.tolist()[1:]
        self._ends = {context.request_id: end for context, end in zip(batch, ends, strict=True)}

    def first(self) -> ModelOutputs:
        """Returns the step's outputs with what follows the tokens that are there before it."""
        next_token_logits = self._logits_of(self._batch)
        return ModelOutputs(logits=self._logits, next_token_logits=next_token_logits, logit_offsets=self._offsets)

    def next(self, contexts: Sequence[TextContext]) -> ModelOutputs:
        """Returns what follows the last tokens of some of the requests, as the outputs of a step of theirs."""
        logits = self._logits_of(contexts)
        offsets = torch.arange(len(contexts) + 1, dtype=torch.int64, device=logits.device)
        return ModelOutputs(logits=logits, next_token_logits=logits, logit_offsets=offsets)

    def _logits_of(self, contexts: Sequence[TextContext]) -> Tensor:
        rows = [self._ends[context.request_id] - 1 - len(context.draft) for context in contexts]
        return self._logits[rows]
