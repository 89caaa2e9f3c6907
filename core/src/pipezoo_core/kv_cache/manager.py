"""Which pages each request owns. Decides on the host; the tensors are the storage's."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipezoo_core.context import TextContext
from pipezoo_core.errors import InsufficientPagesError
from pipezoo_core.kv_cache.inputs import KVCacheInputs, RaggedBatch, StepPlanner, build_kv_cache_inputs
from pipezoo_core.kv_cache.params import KVCacheParams
from pipezoo_core.kv_cache.storage import KVCacheStorage
from pipezoo_core.paging import Claim, GroupBooks, Holding, KVCacheMetrics, UpcomingPages, known_prefix, root_hash
from pipezoo_core.paging.observer import PageObserver
from pipezoo_core.request import RequestID

__all__ = ["PagedKVCacheManager"]


class PagedKVCacheManager:
    """Owns the map from request to pages.

    Layers whose pages are of use for as long are a group, with pages and books of its own. A request has pages in all
    groups, or gets none.

    The order of calls for a request is `external_claim`, then per step `maybe_reserve`, `fetch`, the model, the
    context's `advance`, and `step`, and after a draft `shrink`; at last `release`.

    Args:
        params: shape of the cache.
        num_pages: to allocate, of each group.
        planner: the attention of the model, which states the layout of the pages.
        device: where the pages are.
    """

    def __init__(
        self, params: KVCacheParams, num_pages: Sequence[int], planner: StepPlanner[Any], device: torch.device
    ) -> None:
        self.params = params
        self.num_pages = tuple(num_pages)
        self._planner = planner
        self._device = device
        self._storage = KVCacheStorage(planner, num_pages, params.page_size, params.dtype, device)
        self._books = [
            GroupBooks(i, count, page_size=params.page_size, sliding_window=group.sliding_window, chunk=group.chunk)
            for i, (group, count) in enumerate(zip(params.groups, num_pages, strict=True))
        ]
        self._root = root_hash(params.model_id)
        self._claims: dict[RequestID, Claim] = {}
        self._upcoming = UpcomingPages(params.page_size)
        self._num_prompt = self._num_hits = 0

    @property
    def total_num_pages(self) -> int:
        """All pages, of all groups."""
        return sum(self.num_pages)

    @property
    def num_free_pages(self) -> int:
        """Pages no request refers to, those kept for their prefix included."""
        return sum(books.pool.num_free for books in self._books)

    @property
    def free_pages(self) -> str:
        """Free pages and all pages of each group of layers, for messages."""
        return ", ".join(f"{books.pool.num_free} free of {books.pool.num_pages}" for books in self._books)

    @property
    def used_pages_pct(self) -> float:
        """Share of the pages that requests refer to, in percent; of the group with the greatest share."""
        return max(100.0 * (1 - books.pool.num_free / books.pool.num_pages) for books in self._books)

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
        return KVCacheMetrics(self._num_prompt, self._num_hits, sum(books.num_evicted for books in self._books))

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
        claim = Claim(self._root_of(context), [Holding() for _ in self._books])
        if self._may_find_prefix(context):
            known_prefix(claim, context.tokens, self._books, self.params.page_size)
        return claim

    def external_claim(self, context: TextContext) -> None:
        """Begins to keep pages for a request.

        Where its first tokens are in the prefix cache, their pages are shared and `context.cache_length` is advanced;
        at least the last token is always left to feed. Of layers with a sliding window, the pages that the next token
        sees suffice.
        """
        assert context.request_id not in self._claims, f"{context.request_id} is claimed twice"
        assert context.cache_length == 0, "a context is claimed before its first step"
        claim = self._claims[context.request_id] = self._new_claim(context)
        if not self._may_find_prefix(context):
            return
        for books in self._books:
            books.retain(claim)
        context.skip_to(claim.num_pages * self.params.page_size)
        self._upcoming.look_ahead(claim, context.tokens)

    def awaits_prefix(self, context: TextContext) -> bool:
        """Whether the page after the request's known prefix is about to be computed for another request.

        It is worth waiting for: when that request has made its step, the page can be shared.
        """
        return self._upcoming.is_shared(self._claims[context.request_id])

    def maybe_reserve(self, context: TextContext, num_steps: int = 1) -> bool:
        """Makes sure the request has pages for its chunk and up to `num_steps - 1` tokens after it, those it may get.

        Returns:
            False where too few pages are free; the request keeps what it has.
        """
        claim = self._claims[context.request_id]
        count = self.params.num_pages_for(_num_tokens_after(context, num_steps)) - claim.num_pages
        if count > 0:
            if any(books.pool.num_free < count for books in self._books):
                return False
            for books in self._books:
                books.extend(claim, count)
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
            books.first_visible_page(position) + min(held, count)
            for books, held, count in zip(self._books, most_held, self.num_pages, strict=True)
        )
        return min(ends) * self.params.page_size - position

    def fetch(self, batch: Sequence[TextContext], num_steps: int = 1) -> KVCacheInputs[Any]:
        """Returns the step's view of the cache for these requests, in this order.

        Raises:
            InsufficientPagesError: a request has no pages for `num_steps`: `maybe_reserve` was not called, or said so.
        """
        claims = [self._claims[context.request_id] for context in batch]
        for context, claim in zip(batch, claims, strict=True):
            if _num_tokens_after(context, num_steps) > claim.num_pages * self.params.page_size:
                raise InsufficientPagesError(
                    "a request has not reserved the pages for its next step",
                    found=f"{claim.num_pages} pages, {self.free_pages}",
                    cure="Call `maybe_reserve` first, and run the step only if it returns True.",
                )
        ragged = RaggedBatch(
            active_lengths=[context.active_length for context in batch],
            cache_lengths=[context.cache_length for context in batch],
            prompt_lengths=[context.prompt_length for context in batch],
            pages=[[claim.holdings[number].pages for claim in claims] for number in range(len(self._books))],
        )
        return self.inputs_of(ragged)

    def inputs_of(self, batch: RaggedBatch) -> KVCacheInputs[Any]:
        """Returns a step's view of the cache that another manager, of as many pages, has decided: see `distributed`."""
        pages = self._storage.key_pages, self._storage.value_pages
        return build_kv_cache_inputs(batch, self.params.page_size, pages, self._planner, self._device)

    def step(self, batch: Sequence[TextContext]) -> None:
        """Notes what the step wrote: full pages can be shared from now on, those that no token sees any more are free.

        Call it after the contexts have advanced.
        """
        for context in batch:
            claim = self._claims[context.request_id]
            if self._shares(context):
                self._commit(claim, context)
            for books in self._books:
                if books.is_bounded:
                    books.free_expired(claim, context.cache_length)

    def _commit(self, claim: Claim, context: TextContext) -> None:
        page_size, before = self.params.page_size, claim.num_committed
        while (end := (claim.num_committed + 1) * page_size) <= context.cache_length:
            hash_ = claim.next_hash(context.tokens[end - page_size : end])
            for books in self._books:
                books.commit(claim, claim.num_committed, hash_, context)
            claim.hashes.append(hash_)
            claim.num_committed += 1
        if claim.num_committed > before or (claim.upcoming is None and end <= len(context.tokens)):
            self._upcoming.look_ahead(claim, context.tokens)

    def shrink(self, context: TextContext) -> None:
        """Takes back the pages that none of a request's cached tokens is in: those of a draft that was wrong."""
        claim = self._claims[context.request_id]
        for books in self._books:
            books.shrink(claim, self.params.num_pages_for(context.cache_length))

    def release(self, request_id: RequestID) -> None:
        """Gives the request's pages back; those with a known prefix stay until others need the room.

        Does nothing for a request that was never claimed or is released already.
        """
        claim = self._claims.pop(request_id, None)
        if claim is None:
            return
        self._upcoming.forget(claim)
        for books in self._books:
            books.release(claim)

    def observe(self, observer: PageObserver) -> None:
        """Has somebody told which pages can be found, from now on."""
        for books in self._books:
            books.observer = observer

    def reset_prefix_cache(self) -> None:
        """Forgets all shared prefixes. Running requests keep their pages."""
        for books in self._books:
            books.forget_prefixes()

    def check_integrity(self) -> None:
        """Checks that free and referenced pages are all pages and that every owner is counted.

        Raises:
            CacheIntegrityError: they are not.
        """
        for books in self._books:
            books.check_integrity(self._claims.values())

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
