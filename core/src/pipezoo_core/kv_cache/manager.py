"""Which pages and slots each request owns. Decides on the host; the tensors are the storage's."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipezoo_core.context import TextContext
from pipezoo_core.errors import InsufficientPagesError, InvalidRequestError, shown
from pipezoo_core.kv_cache.inputs import KVCacheInputs, RaggedBatch, StepPlanner, build_kv_cache_inputs
from pipezoo_core.kv_cache.params import KVCacheParams
from pipezoo_core.kv_cache.storage import KVCacheStorage
from pipezoo_core.paging import (
    CacheBooks,
    Claim,
    GroupBooks,
    KVCacheMetrics,
    PageObserver,
    StateBooks,
    root_hash,
)
from pipezoo_core.request import RequestID

__all__ = ["PagedKVCacheManager"]


class PagedKVCacheManager:
    """Owns the map from request to pages, and to slots for the states of layers that keep these instead.

    Layers whose pages are of use for as long are a group, with pages and books of its own. A request has pages in all
    groups and a slot, or gets none.

    The order of calls for a request is `external_claim`, then per step `maybe_reserve`, `fetch`, the model, the
    context's `advance`, and `step`, and after a draft `shrink`; at last `release`.

    Args:
        params: shape of the cache.
        num_pages: to allocate, of each group.
        planner: the attention of the model, which states the layout of the pages.
        device: where the pages are.
        num_slots: for states, see `KVCacheParams.num_slots_for`.
    """

    def __init__(
        self,
        params: KVCacheParams,
        num_pages: Sequence[int],
        planner: StepPlanner[Any],
        device: torch.device,
        num_slots: int = 0,
    ) -> None:
        self.params = params
        self.num_pages = tuple(num_pages)
        self._planner = planner
        self._device = device
        self._storage = KVCacheStorage(
            planner, num_pages, params.page_size, params.dtype, device, params.states, num_slots
        )
        groups = [
            GroupBooks(i, count, page_size=params.page_size, sliding_window=group.sliding_window, chunk=group.chunk)
            for i, (group, count) in enumerate(zip(params.groups, num_pages, strict=True))
        ]
        states = StateBooks(num_slots, params.page_size) if params.states else None
        self._books = CacheBooks(groups, states, params.page_size)
        self._root = root_hash(params.model_id)
        self._claims: dict[RequestID, Claim] = {}
        self._num_prompt = self._num_hits = 0

    @property
    def total_num_pages(self) -> int:
        """All pages, of all groups."""
        return sum(self.num_pages)

    @property
    def num_free_pages(self) -> int:
        """Pages no request refers to, those kept for their prefix included."""
        return self._books.num_free_pages

    @property
    def free_room(self) -> str:
        """Free pages and all pages of each group of layers, and slots for states, for messages."""
        return self._books.free_room

    @property
    def used_pages_pct(self) -> float:
        """Share of the pages that requests refer to, in percent; of the group with the greatest share."""
        return self._books.used_pages_pct

    @property
    def max_num_tokens(self) -> int:
        """How many tokens one request may have when it is alone."""
        return self.params.max_tokens_in(self.num_pages)

    @property
    def device_tensors(self) -> list[Tensor]:
        """All key pages, then all value pages, layer by layer. A name of MAX's; to look at, nothing here reads it."""
        return [*self._storage.key_pages, *self._storage.value_pages]

    @property
    def metrics(self) -> KVCacheMetrics:
        """Counters since the manager was made."""
        return KVCacheMetrics(self._num_prompt, self._num_hits, self._books.num_evicted)

    def contains(self, request_id: RequestID) -> bool:
        """Whether the request was claimed and not yet released."""
        return request_id in self._claims

    @property
    def num_requests(self) -> int:
        """Requests that are claimed and not yet released."""
        return len(self._claims)

    def num_known_pages(self, context: TextContext) -> int:
        """Returns how many pages of a request that is not claimed the prefix cache knows."""
        return self._new_claim(context).num_committed

    def _new_claim(self, context: TextContext) -> Claim:
        """Returns a claim to the known pages of a request's tokens, without a reference to them."""
        claim = self._books.new_claim(self._root_of(context))
        if self._may_find_prefix(context):
            self._books.find_prefix(claim, context.tokens)
        return claim

    def external_claim(self, context: TextContext) -> None:
        """Begins to keep pages for a request.

        Where its first tokens are in the prefix cache, their pages are shared and `context.cache_length` is advanced;
        at least the last token is always left to feed. Of layers with a sliding window, the pages that the next token
        sees suffice; of layers with a state, a snapshot at their end.
        """
        assert context.request_id not in self._claims, f"{context.request_id} is claimed twice"
        assert context.cache_length == 0, "a context is claimed before its first step"
        claim = self._claims[context.request_id] = self._new_claim(context)
        if not self._may_find_prefix(context):
            return
        self._books.retain(claim)
        context.skip_to(claim.num_pages * self.params.page_size)
        self._books.look_ahead(claim, context)

    def awaits_prefix(self, context: TextContext) -> bool:
        """Whether the page after the request's known prefix is about to be computed for another request.

        It is worth waiting for: when that request has made its step, the page can be shared. Where layers keep a state,
        it is the snapshot that the other one leaves.
        """
        return self._books.upcoming.is_shared(self._claims[context.request_id])

    def most_at_once(self, context: TextContext) -> int:
        """Returns how many tokens the request's next chunk may have: to where its state is to become a snapshot."""
        if not self._shares(context):
            return sys.maxsize
        return self._books.most_at_once(self._claims[context.request_id], context)

    def maybe_reserve(self, context: TextContext, num_steps: int = 1) -> bool:
        """Makes sure the request has pages for its chunk and up to `num_steps - 1` tokens after it, those it may get.

        Where layers keep a state, it has a slot to write it to, too.

        Returns:
            False where too few pages or slots are free; the request keeps what it has.
        """
        claim = self._claims[context.request_id]
        count = self.params.num_pages_for(_num_tokens_after(context, num_steps)) - claim.num_pages
        if not self._books.reserve(claim, count):
            return False
        if not claim.is_counted:
            claim.is_counted = True
            self._num_prompt += len(context.tokens)
            self._num_hits += context.cache_length
        return True

    def num_reserved(self, context: TextContext) -> int:
        """Returns how many tokens behind the cached ones the request has pages for."""
        return self._claims[context.request_id].num_pages * self.params.page_size - context.cache_length

    def room_for(self, context: TextContext, max_chunk: int) -> int:
        """Returns for how many tokens more the request may reserve pages.

        Where pages do not expire, for as many as there are. Where they do, no more than it takes to feed `max_chunk`
        tokens at a time from now on, because pages come back in between.
        """
        position = context.cache_length
        most_held = self.params.num_pages_held(sys.maxsize, max_chunk)
        ends = (
            group.first_visible_page(position) + min(held, count)
            for group, held, count in zip(self._books.groups, most_held, self.num_pages, strict=True)
        )
        return min(ends) * self.params.page_size - position

    def fetch(self, batch: Sequence[TextContext], num_steps: int = 1) -> KVCacheInputs[Any]:
        """Returns the step's view of the cache for these requests, in this order.

        Raises:
            InsufficientPagesError: a request has no pages for `num_steps`, or no slot: `maybe_reserve` was not called,
                or said so.
            InvalidRequestError: a request's last step failed, and may have written a part of its states.
        """
        claims = [self._claims[context.request_id] for context in batch]
        for context, claim in zip(batch, claims, strict=True):
            if claim.state.is_in_step:
                raise InvalidRequestError(
                    "a step of this request failed, and may have changed the states of some layers",
                    found=shown(context.request_id),
                    cure="Release it, and begin again with a new context.",
                )
            num_tokens = _num_tokens_after(context, num_steps)
            if not self._books.has_slot(claim) or num_tokens > claim.num_pages * self.params.page_size:
                raise InsufficientPagesError(
                    "a request has not reserved what its next step needs",
                    found=f"{claim.num_pages} pages of its own; free {self.free_room}",
                    cure="Call `maybe_reserve` first, and run the step only if it returns True.",
                )
        read_slots, write_slots = self._books.begin_step(claims)
        ragged = RaggedBatch(
            active_lengths=[context.active_length for context in batch],
            cache_lengths=[context.cache_length for context in batch],
            prompt_lengths=[context.prompt_length for context in batch],
            pages=[[claim.holdings[number].pages for claim in claims] for number in range(len(self._books.groups))],
            read_slots=read_slots,
            write_slots=write_slots,
        )
        return self.inputs_of(ragged)

    def inputs_of(self, batch: RaggedBatch) -> KVCacheInputs[Any]:
        """Returns a step's view of the cache that another manager, of as many pages, has decided: see `distributed`."""
        pages = self._storage.key_pages, self._storage.value_pages
        states = self._storage.states
        return build_kv_cache_inputs(batch, self.params.page_size, pages, states, self._planner, self._device)

    def step(self, batch: Sequence[TextContext]) -> None:
        """Notes what the step wrote: full pages can be shared from now on, those that no token sees any more are free.

        Call it after the contexts have advanced.
        """
        for context in batch:
            self._books.step(self._claims[context.request_id], context, is_shared=self._shares(context))

    def shrink(self, context: TextContext) -> None:
        """Takes back the pages that none of a request's cached tokens is in: those of a draft that was wrong."""
        claim = self._claims[context.request_id]
        self._books.shrink(claim, self.params.num_pages_for(context.cache_length))

    def release(self, request_id: RequestID) -> None:
        """Gives the request's pages back; those with a known prefix stay until others need the room.

        Does nothing for a request that was never claimed or is released already.
        """
        claim = self._claims.pop(request_id, None)
        if claim is not None:
            self._books.release(claim)

    def observe(self, observer: PageObserver) -> None:
        """Has somebody told which pages can be found, from now on."""
        self._books.observe(observer)

    def reset_prefix_cache(self) -> None:
        """Forgets all shared prefixes. Running requests keep their pages."""
        self._books.forget_prefixes()

    def check_integrity(self) -> None:
        """Checks that free and referenced pages and slots are all there are and that every owner is counted.

        Raises:
            CacheIntegrityError: they are not.
        """
        self._books.check_integrity(self._claims.values())

    def _shares(self, context: TextContext) -> bool:
        limit = self.params.max_shareable_prompt
        return self.params.enable_prefix_caching and (limit is None or context.prompt_length <= limit)

    def _may_find_prefix(self, context: TextContext) -> bool:
        return self._shares(context) and not context.wants_prompt_logits

    def _root_of(self, context: TextContext) -> bytes:
        namespace, salt = context.cache_namespace, context.sampling_params.cache_salt
        return root_hash(self.params.model_id, namespace, salt or "") if namespace or salt else self._root

    @classmethod
    def estimated_memory_size(
        cls, params: KVCacheParams, max_batch_size: int, max_length: int, max_chunk: int, available_cache_memory: int
    ) -> int:
        """Returns the bytes to use: what a full batch of longest requests takes, or what there is, in whole pages."""
        wanted = max_batch_size * params.bytes_held(max_length, max_chunk)
        return params.size_of(params.divide(min(wanted, available_cache_memory), max_batch_size, max_length, max_chunk))

    @classmethod
    def max_supported_sequence_length(cls, params: KVCacheParams, available_cache_memory: int) -> int:
        """Returns how many tokens one request may have in so many bytes. A name of MAX's."""
        return params.longest_in(available_cache_memory)

    @classmethod
    def infer_optimal_batch_size(
        cls, params: KVCacheParams, max_length: int, max_chunk: int, available_cache_memory: int
    ) -> int:
        """Returns how many requests of the greatest length fit at the same time, at least 1. A name of MAX's."""
        return max(1, available_cache_memory // params.bytes_held(max_length, max_chunk))


def _num_tokens_after(context: TextContext, num_steps: int) -> int:
    """Returns how many tokens of a request the cache holds after so many steps."""
    num_tokens = context.cache_length + context.active_length
    if num_steps == 1:
        return num_tokens
    return max(num_tokens, min(num_tokens + num_steps - 1, context.max_num_tokens - 1))  # the last one is not fed
