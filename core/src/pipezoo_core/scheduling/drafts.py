"""Which requests of a step are fed more tokens than they have: drafts, from what a step has to spare."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from pipezoo_core.context import TextContext
from pipezoo_core.drafting import MAX_GUESSED, Guess, StepBalance, StepCosts

if TYPE_CHECKING:
    from pipezoo_core.kv_cache import PagedKVCacheManager

__all__ = ["add_drafts"]

_PROBED = 8  # tokens: a request whose guesses are not worth it is looked at after as many


def add_drafts(
    batch: Collection[TextContext],
    manager: PagedKVCacheManager,
    costs: StepCosts,
    *,
    num_rows: int,
    room: int,
    max_chunk: int,
) -> None:
    """Adds drafts to the decoding requests of a step whose chunks are set and whose pages are reserved.

    A draft takes pages that are free, and after the step a request gives back those in which no token came.

    Args:
        batch: the step's requests.
        manager: gives their pages.
        costs: of steps of as many requests.
        num_rows: of the step.
        room: how many rows more it may have.
        max_chunk: most tokens of a step.
    """
    balance = StepBalance(costs, num_rows, sum(context.samples for context in batch))
    for context in batch:
        if context.num_generated and context.active_length == context.num_pending == 1:
            most = min(
                MAX_GUESSED,
                room,
                context.max_num_tokens - len(context.tokens) - 1,
                manager.room_for(context, max_chunk) - 1,
            )
            guess = _guess_for(context, balance, most)
            if guess is not None and _is_set(context, guess.tokens, manager):
                balance.add(guess.rate, len(context.draft))
                room -= len(context.draft)


def _guess_for(context: TextContext, balance: StepBalance, most: int) -> Guess | None:
    """Returns the tokens that are worth a row each, up to one that ends the answer or that its grammar bars."""
    drafter = context.drafter
    if context.num_generated % _PROBED and not balance.num_worthwhile(drafter.greatest_rate, most):
        return None
    guess = drafter.guess()
    if guess is None:
        return None
    count = balance.num_worthwhile(guess.rate, min(most, len(guess.tokens)))
    draft = [*takewhile(lambda token: token not in context.stop_token_ids, guess.tokens[:count])]
    if draft and context.matcher is not None:
        draft = draft[: context.matcher.num_allowed(draft)]
    return Guess(draft, guess.rate) if draft else None


def _is_set(context: TextContext, draft: Sequence[int], manager: PagedKVCacheManager) -> bool:
    """Makes the tokens a draft, or where there are no pages for all of them, those that need none."""
    for count in sorted({len(draft), min(len(draft), manager.num_reserved(context) - 1)}, reverse=True):
        if count <= 0:
            break
        context.set_draft(draft[:count])
        if manager.maybe_reserve(context):
            return True
        context.drop_draft()
    return False
