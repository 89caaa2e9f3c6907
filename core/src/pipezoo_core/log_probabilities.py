"""Log probabilities of tokens from logits."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pipezoo_core.request import LogProbabilities
from pipezoo_core.sampling_params import NUMBERS_SAMPLED_AT_ONCE

__all__ = ["log_probabilities_of"]


def log_probabilities_of(logits: Tensor, tokens: Tensor, top_n: int) -> LogProbabilities:
    """Returns the log probability of one token per row, and of the most likely ones.

    Args:
        logits: [R, V], unchanged by sampling settings.
        tokens: int64 [R], the token that followed each row.
        top_n: how many of the most likely tokens to list.
    """
    result = LogProbabilities([], [])
    at_once = max(1, NUMBERS_SAMPLED_AT_ONCE // logits.shape[-1])
    for rows, targets in zip(logits.split(at_once), tokens.split(at_once), strict=True):
        log_probabilities = rows.float().log_softmax(-1)
        own_values = log_probabilities.gather(-1, targets.unsqueeze(-1))
        own = own_values.squeeze(-1).tolist()
        top_values, top_tokens = log_probabilities.topk(min(top_n, rows.shape[-1]), dim=-1)
        result.token_log_probabilities.extend(own)
        result.token_ranks.extend((1 + (log_probabilities > own_values).sum(-1)).tolist())
        result.top_log_probabilities.extend(
            _top(values, ids, token, value)
            for values, ids, token, value in zip(
                top_values.tolist(), top_tokens.tolist(), targets.tolist(), own, strict=True
            )
        )
    return result


def _top(values: Sequence[float], tokens: Sequence[int], token: int, value: float) -> dict[int, float]:
    return dict(zip(tokens, values, strict=True)) | {token: value}
