"""From logits to the next tokens, each request by its own settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipezoo_core.context import TextContext
from pipezoo_core.errors import InvalidRequestError, LogitsProcessorError
from pipezoo_core.pipeline.token_masks import TokenMasks
from pipezoo_core.sampling_params import NUMBERS_SAMPLED_AT_ONCE, SamplingParams

__all__ = ["NO_TOKEN", "sample"]

NO_TOKEN = -1
"""Instead of a token, where the greatest logit is NaN or infinite."""

_FIRST_CANDIDATES = 256  # of top-p: a peaked distribution needs fewer
_BLOCK = 256  # tokens of which the sum is one step of the CDF


def sample(logits: Tensor, contexts: Sequence[TextContext], masks: TokenMasks | None = None) -> Tensor:
    """Chooses one token per context; the most likely one for those whose chunk does not reach their last token.

    Args:
        logits: [B, V], of any floating-point dtype; left as it is.
        contexts: those that do not decode greedily draw one random number each.
        masks: what the grammars of these contexts allow; None where no context has one.

    Returns:
        int64 [B], `NO_TOKEN` where a row has NaN, plus infinity, or nothing but minus infinity. Where it is the
        request's own settings that leave no token, the context has the `error`.
    """
    tokens = _most_likely(logits)
    masked = masks.rows if masks is not None else []
    others = [i for i, c in enumerate(contexts) if c.samples and (i in masked or not _is_plain(c))]
    at_once = max(1, NUMBERS_SAMPLED_AT_ONCE // logits.shape[-1])  # or there would be many copies of all logits
    for first in range(0, len(others), at_once):
        places = others[first : first + at_once]
        adjusted = logits[places]
        for row_V, place in zip(adjusted, places, strict=True):
            _adjust_(row_V, contexts[place])
        if masks is not None:
            masks.of(places).apply_(adjusted)
        chosen = _choose(adjusted, [contexts[place] for place in places])
        for place in (chosen == NO_TOKEN).nonzero().flatten().tolist():
            _note_no_token_left(contexts[places[place]], has_any=bool(tokens[places[place]] != NO_TOKEN))
        tokens[places] = chosen
    return tokens


def _is_plain(context: TextContext) -> bool:
    """Whether the most likely token is the one, grammars apart."""
    params = context.sampling_params
    return params.is_greedy and not params.changes_logits and context.may_end


def _choose(logits: Tensor, contexts: Sequence[TextContext]) -> Tensor:
    """Chooses one token per row: the most likely one, or a drawn one."""
    tokens = _most_likely(logits)
    drawn = [i for i, context in enumerate(contexts) if not context.sampling_params.is_greedy]
    if drawn:
        chosen = [contexts[i] for i in drawn]
        draws = torch.tensor([context.draw() for context in chosen], dtype=torch.float64, device=logits.device)
        sampled = _draw_tokens(logits[drawn], [context.sampling_params for context in chosen], draws)
        tokens[drawn] = sampled.where(tokens[drawn] != NO_TOKEN, NO_TOKEN)
    return tokens


def _most_likely(logits: Tensor) -> Tensor:
    """Returns the place of each row's greatest number, as which NaN counts; `NO_TOKEN` where that is not finite.

    On a CPU numpy looks for it with vectors and torch does not: 5 µs instead of 53 for 49,152 numbers.
    """
    if logits.device.type == "cpu":
        numbers = (logits if logits.dtype is torch.float32 else logits.float()).numpy()
        places = numbers.argmax(-1)
        places[~np.isfinite(numbers[np.arange(len(numbers)), places])] = NO_TOKEN
        return torch.from_numpy(places)
    tokens = logits.argmax(-1)
    is_sound = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).isfinite()
    return tokens.where(is_sound, NO_TOKEN)


def _adjust_(row_V: Tensor, context: TextContext) -> None:
    """Applies bias, penalties and processors, and bars tokens, in place."""
    params = context.sampling_params
    if params.changes_logits:
        _add_bias_and_penalties_(row_V, context)
        if params.logits_processors:
            _process_(row_V, context)
        _bar_words_(row_V, context)
    if not context.may_end and context.matcher is None:  # a grammar bars them itself
        row_V[_beside(row_V, context.stop_tokens)] = -torch.inf


def _beside(row_V: Tensor, numbers: NDArray[Any]) -> Tensor:
    """Returns numbers that a context keeps, on the device of its logits."""
    return torch.from_numpy(numbers).to(row_V.device)


def _add_bias_and_penalties_(row_V: Tensor, context: TextContext) -> None:
    params = context.sampling_params
    if params.logit_bias:
        row_V[_beside(row_V, context.biased_tokens)] += _beside(row_V, context.biases)
    if params.repetition_penalty != 1.0:
        seen = _beside(row_V, context.token_counts.up_to_now()[0])
        values = row_V[seen]
        row_V[seen] = torch.where(values < 0, values * params.repetition_penalty, values / params.repetition_penalty)
    if params.frequency_penalty != 0.0 or params.presence_penalty != 0.0:
        own, counts = (_beside(row_V, numbers) for numbers in context.generated_counts.up_to_now())
        row_V[own] -= params.frequency_penalty * counts.float() + params.presence_penalty


@torch.no_grad()  # a processor may have parameters
def _process_(row_V: Tensor, context: TextContext) -> None:
    """Applies the request's own processors; where one fails, notes why and leaves no token to choose."""
    try:
        for processor in context.sampling_params.logits_processors:
            row_V.copy_(_checked(processor(list(context.tokens), row_V), row_V))
    except Exception as error:
        context.error = LogitsProcessorError("a logits processor failed", found=f"{type(error).__name__}: {error}")
        context.error.__cause__ = error
        row_V.fill_(torch.nan)


def _checked(found: object, row_V: Tensor) -> Tensor:
    """Returns what a processor returned, if it can take the place of the logits.

    Raises:
        TypeError: it is no tensor.
        ValueError: it has another shape, or NaN or plus infinity.
    """
    if not isinstance(found, Tensor):
        raise TypeError(f"it returned {type(found).__name__}, and not a tensor")
    if found.shape != row_V.shape:
        raise ValueError(f"it returned {list(found.shape)} logits instead of {list(row_V.shape)}")
    if not (found < torch.inf).all():
        raise ValueError("it returned NaN or infinity; minus infinity bars a token")
    return found


def _bar_words_(row_V: Tensor, context: TextContext) -> None:
    """Bars the last token of each bad word whose others are there, and all tokens that are not allowed."""
    tokens = context.tokens
    last = [word[-1] for word in context.bad_words if tokens[len(tokens) - len(word) + 1 :] == word[:-1]]
    if last:
        row_V[torch.tensor(last, dtype=torch.int64, device=row_V.device)] = -torch.inf
    if context.allowed_tokens is not None:
        allowed = _beside(row_V, context.allowed_tokens)
        kept = row_V[allowed]
        row_V.fill_(-torch.inf)
        row_V[allowed] = kept


def _note_no_token_left(context: TextContext, *, has_any: bool) -> None:
    """Notes why a request has no next token, where it is its settings that leave none of those that the model has."""
    if has_any and context.error is None:
        context.error = InvalidRequestError(
            "the request's settings leave no token to choose",
            found=f"after {context.num_generated} new tokens: {', '.join(context.sampling_params.barring)}",
            cure="Allow an end token, too.",
        )


def _draw_tokens(logits: Tensor, params: Sequence[SamplingParams], draws: Tensor) -> Tensor:
    """Draws from each row's distribution after temperature, top-k, top-p and min-p, by inverting its CDF."""
    device = logits.device
    probabilities = (logits / _column((p.temperature for p in params), device)).softmax(-1)
    if any(_keeps_few(p, logits.shape[-1]) for p in params):
        probabilities *= probabilities >= _least_kept(probabilities, params)
    if any(p.min_p > 0.0 for p in params):
        floors = probabilities.amax(-1, keepdim=True) * _column((p.min_p for p in params), device)
        probabilities *= probabilities >= floors
    return _invert_cdf(probabilities, draws)


def _column(values: Iterable[float], device: torch.device) -> Tensor:
    return torch.tensor([*values], dtype=torch.float32, device=device).unsqueeze(-1)


def _keeps_few(params: SamplingParams, num_tokens: int) -> bool:
    return 0 < params.top_k < num_tokens or params.top_p < 1.0


def _least_kept(probabilities: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Returns the probability of the last token that top-k and top-p keep, [B, 1]; 0 where they keep all.

    Looks at a few of the most likely tokens, and at more where those do not add up to p.
    """
    num_tokens, device = probabilities.shape[-1], probabilities.device
    limits = [p.top_k if 0 < p.top_k < num_tokens else num_tokens for p in params]
    limit = torch.tensor(limits, dtype=torch.int64, device=device).unsqueeze(-1)
    top_p = _column((p.top_p if p.top_p < 1.0 else torch.inf for p in params), device)
    keeps_all = (limit == num_tokens) & top_p.isinf()
    width = max([_FIRST_CANDIDATES, *(k for k in limits if k < num_tokens)])
    while True:
        width = min(width, num_tokens)
        best = _greatest(probabilities, width)
        is_candidate = torch.arange(width, dtype=torch.int64, device=device) < limit
        candidates = best * is_candidate
        sums = candidates.cumsum(-1, dtype=torch.float64)  # or rounding might depend on the width, so on other rows
        total = sums[:, -1:].where(limit < num_tokens, 1.0)
        is_kept = is_candidate & (sums - candidates < top_p * total)  # those before it do not reach p
        num_kept = is_kept.sum(-1, keepdim=True)
        if width == num_tokens or bool(((num_kept < width) | (limit <= width) | keeps_all).all()):
            last = (num_kept - 1).clamp(min=0)  # a row of NaN keeps none
            return best.gather(-1, last).masked_fill(keeps_all, 0.0)
        width *= 8


def _greatest(rows: Tensor, count: int) -> Tensor:
    """Returns the greatest numbers of each row, [B, count], in descending order.

    On a CPU numpy finds them with vectors and torch does not.
    """
    if rows.device.type != "cpu":
        return rows.topk(count).values
    best = np.partition(rows.numpy(), rows.shape[-1] - count)[:, -count:]
    best.sort()
    return torch.from_numpy(best[:, ::-1].copy())


def _invert_cdf(probabilities: Tensor, draws: Tensor) -> Tensor:
    """Returns the token of each row at which the sum of probabilities passes the draw's part of the whole.

    Sums blocks of tokens first and then the tokens of one, so that few numbers are added one after the other.
    """
    if missing := -probabilities.shape[-1] % _BLOCK:
        probabilities = F.pad(probabilities, (0, missing))
    blocks = probabilities.unflatten(-1, (-1, _BLOCK))
    ends = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    goal = draws.unsqueeze(-1) * ends[:, -1:]
    block = _first_beyond(ends, goal)
    before = F.pad(ends, (1, 0)).gather(-1, block)
    chosen = blocks.gather(1, block.unsqueeze(-1).expand(-1, -1, _BLOCK)).squeeze(1)
    return (block * _BLOCK + _first_beyond(chosen.cumsum(-1, dtype=torch.float64), goal - before)).squeeze(-1)


def _first_beyond(ends: Tensor, goal: Tensor) -> Tensor:
    """Returns where the rising sums pass the goal, [B, 1]; where they rise last if rounding keeps them below it."""
    last = torch.searchsorted(ends, ends[:, -1:].contiguous())
    last = last.clamp(max=ends.shape[-1] - 1)  # a search for NaN ends beyond
    return torch.searchsorted(ends, goal, right=True).minimum(last)
