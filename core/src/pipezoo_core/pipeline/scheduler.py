"""Which requests a step works on, and how many tokens of each. Knows no torch."""

from __future__ import annotations

from collections import OrderedDict

from pipezoo_core.context import TextContext
from pipezoo_core.kv_cache import PagedKVCacheManager
from pipezoo_core.lora import LoRAManager, hold_adapter
from pipezoo_core.request import RequestID, TextGenerationInputs

__all__ = ["Scheduler"]


class Scheduler:
    """Owns the order of the requests: those that wait, and those that run, oldest first.

    Each step has a budget of tokens. Requests that decode take one each, first; what is left goes to prompts, oldest
    first, in chunks. A request is let in when the pages for all its tokens are free; with a sliding window, as many as
    it holds at the same time. It waits, and those behind it, while its next page is being computed for another request:
    the page will be shared. When a decoding request needs a page and none is free, the youngest running request is
    preempted: it gives its pages back and waits at the front, to be computed again from its tokens. The oldest request
    is never preempted, so something always gets done.

    A request whose adapter finds no slot waits like one that finds no pages, and those after it with it. A preempted
    request keeps its slot: it is the first to be let in again.

    Args:
        manager: gives the pages.
        lora_manager: gives the adapters' slots; None where there are no adapters.
        max_batch_size: most requests that run at the same time.
        max_batch_tokens: the budget.
    """

    def __init__(
        self,
        manager: PagedKVCacheManager,
        lora_manager: LoRAManager | None = None,
        *,
        max_batch_size: int,
        max_batch_tokens: int,
    ) -> None:
        self._manager = manager
        self._lora_manager = lora_manager
        self._max_batch_size = max_batch_size
        self._max_batch_tokens = max_batch_tokens
        self._waiting: OrderedDict[RequestID, TextContext] = OrderedDict()
        self._running: OrderedDict[RequestID, TextContext] = OrderedDict()
        self.num_preemptions = 0

    @property
    def num_waiting(self) -> int:
        """Requests that have no pages yet, or none any more."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests that have pages."""
        return len(self._running)

    def add(self, context: TextContext) -> None:
        """Lets a request wait for its turn.

        Raises:
            InsufficientPagesError: it does not fit the KV cache even when it is alone there.
            AdapterNotFoundError: it names an adapter that is not loaded.
        """
        context.check_fits(self._manager.max_num_tokens)
        hold_adapter(self._lora_manager, context)
        self._waiting[context.request_id] = context

    def remove(self, request_id: RequestID) -> None:
        """Forgets a request and gives its pages back. Does nothing for one that is not known."""
        self._waiting.pop(request_id, None)
        if self._running.pop(request_id, None) is not None:
            self._manager.release(request_id)

    def schedule(self) -> TextGenerationInputs:
        """Chooses the next step's requests, sets their chunks and reserves their pages.

        Returns:
            An empty batch where nothing is left to do.
        """
        batch: OrderedDict[RequestID, TextContext] = OrderedDict()
        budget = self._max_batch_tokens
        for decodes in (True, False):
            for context in list(self._running.values()):
                if budget and (context.num_pending == 1) is decodes and context.request_id in self._running:
                    budget -= self._grow(context, budget, batch)
        while budget and self._waiting and len(self._running) < self._max_batch_size:
            context = next(iter(self._waiting.values()))
            if not self._admit(context):
                break
            budget -= self._grow(context, budget, batch)
        return TextGenerationInputs([dict(batch)] if batch else [])

    def _admit(self, context: TextContext) -> bool:
        if self._lora_manager is not None and not self._lora_manager.claim(context):
            return False
        self._manager.external_claim(context)
        context.set_chunk(self._most(context))
        if self._manager.awaits_prefix(context) or not self._manager.maybe_reserve(context):
            self._manager.release(context.request_id)
            context.restart()
            return False
        del self._waiting[context.request_id]
        self._running[context.request_id] = context
        return True

    def _grow(self, context: TextContext, budget: int, batch: OrderedDict[RequestID, TextContext]) -> int:
        """Puts a chunk of the request into the batch, at the cost of younger ones if need be."""
        context.set_chunk(min(budget, self._most(context)))
        while not self._manager.maybe_reserve(context):
            youngest = next(reversed(self._running.values()))
            self._preempt(youngest)
            batch.pop(youngest.request_id, None)
            if youngest is context:
                return 0
        batch[context.request_id] = context
        return context.active_length

    def _most(self, context: TextContext) -> int:
        return min(context.num_pending, self._manager.room_for(context, self._max_batch_tokens))

    def _preempt(self, context: TextContext) -> None:
        self._manager.release(context.request_id)
        context.restart()
        del self._running[context.request_id]
        self._waiting[context.request_id] = context
        self._waiting.move_to_end(context.request_id, last=False)
        self.num_preemptions += 1
