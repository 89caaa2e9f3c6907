"""Which requests a step works on, and how many tokens of each. Knows no torch."""

from __future__ import annotations

import itertools
import logging
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipezoo_core.context import TextContext, TextGenerationInputs
from pipezoo_core.drafting import StepTimes
from pipezoo_core.errors import InvalidRequestError, shown
from pipezoo_core.request import RequestID
from pipezoo_core.sampling_params import NUM_ECHOED_AT_ONCE
from pipezoo_core.scheduling.adapters import hold_adapter
from pipezoo_core.scheduling.drafts import add_drafts
from pipezoo_core.scheduling.router import get_or_recommend_replica

if TYPE_CHECKING:
    from pipezoo_core.kv_cache import PagedKVCacheManager
    from pipezoo_core.lora import LoRAManager

__all__ = ["Scheduler"]

_LOGGER = logging.getLogger("pipezoo")


@dataclass(slots=True)
class _Replica:
    """What one replica works on.

    Attributes:
        manager: gives its pages.
        lora_manager: gives its adapters' slots; None where there are no adapters.
        running: requests that have pages, oldest first.
        preempted: requests that had pages, oldest first.
        batch: the step's requests so far.
        budget: the tokens that the step may still feed.
        logits_budget: the rows of logits that it may still have besides one per request.
    """

    manager: PagedKVCacheManager
    lora_manager: LoRAManager | None
    running: OrderedDict[RequestID, TextContext] = field(default_factory=OrderedDict)
    preempted: OrderedDict[RequestID, TextContext] = field(default_factory=OrderedDict)
    batch: dict[RequestID, TextContext] = field(default_factory=dict)
    budget: int = 0
    logits_budget: int = 0


class Scheduler:
    """Owns the order of the requests: those that wait, by priority and then oldest first, and those that run.

    Each step has a budget of tokens. Requests that decode take one each, first; what is left goes to prompts, oldest
    first, in chunks. A request is let in when the pages for all its tokens are free; with a sliding window, as many as
    it holds at the same time. It waits while its next page is being computed for another request: the page will be
    shared, and those behind it may pass. Where layers keep a state, a chunk ends where others may go on. One that finds
    no pages waits, and those behind it with it. When a decoding request needs a page and none is free, the youngest
    running request is preempted: it gives its pages back and waits at the front, to be computed again from its tokens.
    The oldest request is never preempted, so something always gets done.

    With drafts, what is left of the budget then goes to what decoding requests may go on with, as far as that is worth
    it.

    A request whose adapter finds no slot waits like one that finds no pages, and those after it with it. Only requests
    with pages hold slots, so that those that wait keep none from each other. One that is preempted finds its adapter
    where it was: nobody is let in before it.

    A prompt that is echoed has a row of logits per token, and rows are as long as the vocabulary. A step has as many as
    a full batch and `NUM_ECHOED_AT_ONCE` more, which is what the memory plan counts; chunks of such prompts share those
    that neither running nor waiting requests may need, and drafts those that are left.

    Replicas share the queue; each has its own pages, slots, budget and batch size. The first in the queue goes where
    `get_or_recommend_replica` says, or where there is no room, to the replica with the fewest
    requests that has, and stays there. One that is preempted waits for its own replica, before the queue.

    Args:
        managers: give the pages, one per replica.
        lora_managers: give the adapters' slots, one per replica; none where there are no adapters.
        max_batch_size: most requests that run at the same time, per replica.
        max_batch_tokens: the budget, per replica.
        with_drafts: whether decoding requests are fed drafts, too.
    """

    def __init__(
        self,
        managers: Sequence[PagedKVCacheManager],
        lora_managers: Sequence[LoRAManager | None] = (),
        *,
        max_batch_size: int,
        max_batch_tokens: int,
        with_drafts: bool = False,
    ) -> None:
        self._max_batch_size = max_batch_size
        self._max_batch_tokens = max_batch_tokens
        self._times = StepTimes() if with_drafts else None
        self._waiting: OrderedDict[RequestID, TextContext] = OrderedDict()
        adapters = lora_managers or [None] * len(managers)
        self._replicas = [_Replica(*both) for both in zip(managers, adapters, strict=True)]
        self.num_preemptions = 0

    @property
    def num_waiting(self) -> int:
        """Requests that have no pages yet, or none any more."""
        return len(self._waiting) + sum(len(replica.preempted) for replica in self._replicas)

    @property
    def num_running(self) -> int:
        """Requests that have pages."""
        return sum(len(replica.running) for replica in self._replicas)

    def add(self, context: TextContext) -> None:
        """Lets a request wait for its turn.

        Raises:
            InsufficientPagesError: it does not fit the KV cache even when it is alone there.
            AdapterNotFoundError: it names an adapter that is not loaded in every replica.
            InvalidRequestError: a replica has pages for a request with this id, which did not come from here.
        """
        if any(replica.manager.contains(context.request_id) for replica in self._replicas):
            raise InvalidRequestError(
                "a request with this id has pages already, because it was given to `execute` directly",
                found=shown(context.request_id),
                cure="Release it first, or take another id.",
            )
        context.check_fits(min(replica.manager.max_num_tokens for replica in self._replicas))
        self._hold_adapter(context)
        is_last = not self._waiting or _priority(next(reversed(self._waiting.values()))) <= _priority(context)
        self._waiting[context.request_id] = context
        if not is_last:
            self._waiting = OrderedDict(sorted(self._waiting.items(), key=lambda item: _priority(item[1])))

    def remove(self, request_id: RequestID) -> None:
        """Forgets a request and gives its pages back. Does nothing for one that is not known."""
        self._waiting.pop(request_id, None)
        for replica in self._replicas:
            replica.preempted.pop(request_id, None)
            if replica.running.pop(request_id, None) is not None:
                replica.manager.release(request_id)

    def schedule(self) -> TextGenerationInputs:
        """Chooses the next step's requests, sets their chunks and reserves their pages.

        Returns:
            An empty batch where nothing is left to do.
        """
        for replica in self._replicas:
            replica.batch, replica.budget = {}, self._max_batch_tokens
            spare = self._max_batch_size - len(replica.running) - self.num_waiting
            replica.logits_budget = max(0, spare) + NUM_ECHOED_AT_ONCE
            self._continue(replica)
            for context in self._first_of(replica.preempted):
                if not self._admit(context, replica.preempted, [replica] if self._has_room(replica) else []):
                    break
        for context in self._first_of(self._waiting):
            if not self._admit(context, self._waiting, self._by_preference(context)):
                break
        if self._times is not None:
            for replica in self._replicas:
                self._add_drafts(replica, self._times)
        batches = [replica.batch for replica in self._replicas]
        return TextGenerationInputs(batches if any(batches) else [])

    def _hold_adapter(self, context: TextContext) -> None:
        """Notes in all replicas, or in none, that a request uses its adapter."""
        for number, replica in enumerate(self._replicas):
            try:
                hold_adapter(replica.lora_manager, context)
            except BaseException:
                self._release_adapter(context, self._replicas[:number])
                raise

    def _release_adapter(self, context: TextContext, replicas: Iterable[_Replica]) -> None:
        for replica in replicas:
            if replica.lora_manager is not None:
                replica.lora_manager.release(context.request_id)

    def _first_of(self, queue: OrderedDict[RequestID, TextContext]) -> list[TextContext]:
        """Returns as many of a queue's requests as may find room, and a batch of those that they may pass."""
        return list(itertools.islice(queue.values(), (len(self._replicas) + 1) * self._max_batch_size))

    def _continue(self, replica: _Replica) -> None:
        for decodes in (True, False):
            for context in list(replica.running.values()):
                is_next = (context.num_pending == 1) is decodes and context.request_id in replica.running
                if is_next and replica.budget:
                    self._grow(context, replica)

    def note_time(self, num_requests: int, num_rows: int, seconds: float) -> None:
        """Notes how long a step's largest batch took, which says what a draft is worth in the next ones."""
        if self._times is not None:
            self._times.note(num_requests, num_rows, seconds)

    def _add_drafts(self, replica: _Replica, times: StepTimes) -> None:
        add_drafts(
            replica.batch.values(),
            replica.manager,
            times.costs(len(replica.batch)),
            num_rows=self._max_batch_tokens - replica.budget,
            room=min(replica.budget, replica.logits_budget),
            max_chunk=self._max_batch_tokens,
        )

    def _has_room(self, replica: _Replica) -> bool:
        return replica.budget > 0 and len(replica.running) < self._max_batch_size

    def _by_preference(self, context: TextContext) -> list[_Replica]:
        replicas = [replica for replica in self._replicas if self._has_room(replica) and not replica.preempted]
        if len(replicas) > 1:
            managers = [replica.manager for replica in self._replicas]
            best = self._replicas[get_or_recommend_replica(managers, context)]
            replicas.sort(key=lambda replica: (replica is not best, len(replica.running)))
        return replicas

    def _admit(
        self, context: TextContext, queue: OrderedDict[RequestID, TextContext], replicas: Sequence[_Replica]
    ) -> bool:
        """Lets a request of a queue into the first of these replicas that has pages and a slot for it.

        Returns:
            False where none has, so that those behind the request wait, too.
        """
        for replica in replicas:
            if not self._claim_adapter(context, replica):
                continue
            replica.manager.external_claim(context)
            context.set_chunk(self._most(context, replica))
            awaits_prefix = replica.manager.awaits_prefix(context)
            if not awaits_prefix and replica.manager.maybe_reserve(context):
                break
            self._give_back(context, replica)
            if awaits_prefix:  # soon to be had here: it is not computed elsewhere
                return True
        else:
            return False
        del queue[context.request_id]
        self._release_adapter(context, (other for other in self._replicas if other is not replica))
        replica.running[context.request_id] = context
        context.begin()
        self._set_chunk(context, replica)
        self._put_in_batch(context, replica)
        return True

    def _claim_adapter(self, context: TextContext, replica: _Replica) -> bool:
        if replica.lora_manager is None:
            return True
        hold_adapter(replica.lora_manager, context)  # each manager has its own name for what the adapter computed
        return replica.lora_manager.claim(context)

    def _give_back(self, context: TextContext, replica: _Replica) -> None:
        """Gives back the pages and the slot of a request that is to wait; its adapter stays loaded."""
        replica.manager.release(context.request_id)
        if replica.lora_manager is not None:
            replica.lora_manager.leave_slot(context.request_id)
        context.restart()

    def _grow(self, context: TextContext, replica: _Replica) -> None:
        """Puts a chunk of a running request into the batch, at the cost of younger ones if need be."""
        self._set_chunk(context, replica)
        while not replica.manager.maybe_reserve(context):
            youngest = next(reversed(replica.running.values()))
            self._preempt(youngest, replica)
            if youngest is context:
                return
        self._put_in_batch(context, replica)

    def _set_chunk(self, context: TextContext, replica: _Replica) -> None:
        most = min(replica.budget, self._most(context, replica), replica.manager.most_at_once(context))
        if context.wants_prompt_logits:
            most = min(most, 1 + replica.logits_budget)
            replica.logits_budget -= most - 1
        context.set_chunk(most)

    def _put_in_batch(self, context: TextContext, replica: _Replica) -> None:
        replica.batch[context.request_id] = context
        replica.budget -= context.active_length

    def _most(self, context: TextContext, replica: _Replica) -> int:
        return min(context.num_pending, replica.manager.room_for(context, self._max_batch_tokens))

    def _preempt(self, context: TextContext, replica: _Replica) -> None:
        if replica.batch.pop(context.request_id, None) is not None:
            replica.budget += context.active_length
            if context.wants_prompt_logits:
                replica.logits_budget += context.active_length - 1
        self._give_back(context, replica)
        del replica.running[context.request_id]
        replica.preempted[context.request_id] = context
        replica.preempted.move_to_end(context.request_id, last=False)
        self.num_preemptions += 1
        _LOGGER.info(
            "preempted a request of %d tokens: the KV cache is full (%d so far)",
            len(context.tokens),
            self.num_preemptions,
        )


def _priority(context: TextContext) -> int:
    return context.sampling_params.priority
