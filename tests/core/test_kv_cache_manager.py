"""The paged KV cache manager: books that always balance, and prefixes that are shared when they should be."""

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipezoo_core.attention import AttentionSpec, PagedAttention
from pipezoo_core.context import TextContext
from pipezoo_core.errors import CacheIntegrityError, InsufficientPagesError
from pipezoo_core.kv_cache import KVCacheParams, PagedKVCacheManager, PagePool
from pipezoo_core.sampling_params import SamplingParams

PAGE_SIZE = 4


def make_manager(num_pages=8, **changes):
    params = KVCacheParams(
        dtype=torch.float32, num_layers=1, num_kv_heads=1, head_dim=2, page_size=PAGE_SIZE, **changes
    )
    spec = AttentionSpec(num_heads=1, num_kv_heads=1, head_dim=2, scale=1.0)
    return PagedKVCacheManager(params, num_pages, PagedAttention(spec), torch.device("cpu"))


def make_context(tokens, request_id="a", **sampling):
    return TextContext(
        request_id=request_id, prompt_tokens=tokens, max_length=1000, sampling_params=SamplingParams(**sampling)
    )


def run_step(manager, context, num_tokens=None, next_token=0):
    context.set_chunk(num_tokens or context.num_pending)
    assert manager.maybe_reserve(context)
    manager.fetch([context])
    context.advance(next_token if context.samples else None)
    manager.step([context])


def test_full_pages_are_shared_with_a_later_request():
    manager = make_manager()
    first = make_context(list(range(10)), "first")
    manager.external_claim(first)
    run_step(manager, first)
    second = make_context(list(range(10)), "second")
    manager.external_claim(second)
    assert second.cache_length == 8
    run_step(manager, second)
    assert manager.num_free_pages == 8 - 3 - 1
    assert manager.metrics.prefix_hit_tokens == 8
    manager.check_integrity()


def test_a_hit_leaves_at_least_one_token_to_feed():
    manager = make_manager()
    first = make_context(list(range(8)), "first")
    manager.external_claim(first)
    run_step(manager, first)
    second = make_context(list(range(8)), "second")
    manager.external_claim(second)
    assert second.cache_length == 4


def test_pages_outlive_their_request_until_room_is_needed():
    manager = make_manager(num_pages=4)
    first = make_context(list(range(9)), "first")
    manager.external_claim(first)
    run_step(manager, first)
    manager.release("first")
    assert manager.num_free_pages == 4
    other = make_context(list(range(100, 109)), "other")  # 3 pages: two empty ones and the tail of the prefix
    manager.external_claim(other)
    assert other.cache_length == 0
    run_step(manager, other)
    assert manager.metrics.evicted_pages == 1
    manager.release("other")
    again = make_context(list(range(9)), "again")
    manager.external_claim(again)
    assert again.cache_length == 4
    manager.check_integrity()


@pytest.mark.parametrize("change", ["other_token_before", "other_model", "disabled", "prompt_too_long", "echo"])
def test_what_is_not_the_same_is_not_shared(change):
    tokens = list(range(9))
    manager = make_manager(
        enable_prefix_caching=change != "disabled", max_shareable_prompt=8 if change == "prompt_too_long" else None
    )
    first = make_context(tokens, "first")
    manager.external_claim(first)
    run_step(manager, first)
    if change == "other_token_before":
        tokens = [50, *tokens[1:]]
    if change == "other_model":
        other = make_manager(model_id="other")
        assert other._root != manager._root
        return
    sampling = {"echo": True, "log_probabilities": 1} if change == "echo" else {}
    second = make_context(tokens, "second", **sampling)
    manager.external_claim(second)
    assert second.cache_length == 0


def test_reservation_that_fails_changes_nothing():
    manager = make_manager(num_pages=2)
    context = make_context(list(range(9)))
    manager.external_claim(context)
    context.set_chunk(9)
    assert not manager.maybe_reserve(context)
    assert manager.num_free_pages == 2
    with pytest.raises(InsufficientPagesError, match="2 free of 2"):
        manager.fetch([context])
    context.set_chunk(4)
    assert manager.maybe_reserve(context)
    assert manager.maybe_reserve(context, num_steps=5)
    assert not manager.maybe_reserve(context, num_steps=6)


def test_release_twice_or_of_a_stranger_does_nothing():
    manager = make_manager()
    context = make_context([1, 2, 3])
    manager.external_claim(context)
    run_step(manager, context)
    manager.release("a")
    manager.release("a")
    manager.release("stranger")
    assert manager.num_free_pages == manager.total_num_pages
    assert not manager.contains("a")


def test_integrity_check_sees_planted_faults():
    pool = PagePool(4)
    pages, _ = pool.allocate(2)
    pool.check_integrity([pages])
    with pytest.raises(CacheIntegrityError, match="reference counts"):
        pool.check_integrity([pages, pages])
    with pytest.raises(CacheIntegrityError, match="twice"):
        pool.check_integrity([[pages[0], pages[0]]])
    pool._empty.pop()
    with pytest.raises(CacheIntegrityError, match="not all pages"):
        pool.check_integrity([pages])


def test_sizes():
    params = make_manager().params
    assert params.bytes_per_page == 2 * 1 * 1 * 2 * 4 * PAGE_SIZE
    assert PagedKVCacheManager.estimated_memory_size(params, 3, 9, 10**9) == 9 * params.bytes_per_page
    assert PagedKVCacheManager.estimated_memory_size(params, 3, 9, 5 * params.bytes_per_page + 1) == (
        5 * params.bytes_per_page
    )
    assert PagedKVCacheManager.max_supported_sequence_length(params, 5 * params.bytes_per_page) == 20
    assert PagedKVCacheManager.infer_optimal_batch_size(params, 9, 7 * params.bytes_per_page) == 2


class ManagerMachine(RuleBasedStateMachine):
    """Random claims, steps and releases; the model is a plain dict of what each request was fed."""

    @initialize(num_pages=st.integers(3, 12))
    def start(self, num_pages):
        self.manager = make_manager(num_pages=num_pages)
        self.contexts = {}
        self.count = 0

    @rule(
        prefix=st.sampled_from([[], [1] * 4, [1] * 8, [1, 2, 3, 4, 5, 6, 7, 8]]),
        tail=st.lists(st.integers(0, 2), min_size=1, max_size=6),
    )
    def claim(self, prefix, tail):
        self.count += 1
        context = make_context(prefix + tail, str(self.count))
        self.manager.external_claim(context)
        assert context.cache_length % PAGE_SIZE == 0
        assert context.cache_length < len(context.tokens)
        self.contexts[context.request_id] = context

    @precondition(lambda self: self.contexts)
    @rule(data=st.data(), token=st.integers(0, 2))
    def step(self, data, token):
        context = data.draw(st.sampled_from(list(self.contexts.values())))
        context.set_chunk(data.draw(st.integers(1, context.num_pending)))
        free = self.manager.num_free_pages
        if not self.manager.maybe_reserve(context):
            assert self.manager.num_free_pages == free
            return
        self.manager.fetch([context])
        context.advance(token if context.samples else None)
        self.manager.step([context])

    @precondition(lambda self: self.contexts)
    @rule(data=st.data())
    def release(self, data):
        request_id = data.draw(st.sampled_from(list(self.contexts)))
        self.manager.release(request_id)
        del self.contexts[request_id]

    @rule()
    def reset_prefix_cache(self):
        self.manager.reset_prefix_cache()

    @invariant()
    def books_balance(self):
        if hasattr(self, "manager"):
            self.manager.check_integrity()

    @invariant()
    def shared_pages_hold_the_same_tokens(self):
        held = {}
        for request_id, context in getattr(self, "contexts", {}).items():
            for i, page in enumerate(self.manager._claims[request_id].pages):
                end = (i + 1) * PAGE_SIZE
                if end <= context.cache_length:
                    assert held.setdefault(page, context.tokens[:end]) == context.tokens[:end]

    def teardown(self):
        for request_id in list(getattr(self, "contexts", {})):
            self.manager.release(request_id)
        if hasattr(self, "manager"):
            assert self.manager.num_free_pages == self.manager.total_num_pages


ManagerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestManagerMachine = ManagerMachine.TestCase
