"""The paged KV cache manager: books that always balance, and prefixes that are shared when they should be."""

import sys

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipezoo_core.attention import AttentionBackends, AttentionSpec
from pipezoo_core.config import AttentionName
from pipezoo_core.context import TextContext
from pipezoo_core.errors import CacheIntegrityError, InsufficientPagesError, InvalidRequestError
from pipezoo_core.kv_cache import KVCacheParams, PagedKVCacheManager
from pipezoo_core.native import NativeKernels
from pipezoo_core.paging import NO_PAGE, NO_SLOT, Claim, PagePool, first_visible
from pipezoo_core.recurrence import StateSpec
from pipezoo_core.sampling_params import SamplingParams

PAGE_SIZE = 4
CPU = torch.device("cpu")


STATE = StateSpec(((2, 3), (5,)))


def make_manager(num_pages=8, *, sliding_window=None, reaches=None, num_slots=0, **changes):
    """A manager of one group of layers for each of `reaches`, which are settings of specs, with as many pages each.

    With slots there is a layer with a state before them.
    """
    reaches = reaches or [{"sliding_window": sliding_window}]
    specs = [AttentionSpec(num_heads=1, num_kv_heads=1, head_dim=2, scale=1.0, **reach) for reach in reaches]
    layers = [STATE, *specs] if num_slots else specs
    backends = AttentionBackends(AttentionName.paged, layers, NativeKernels(CPU, torch.float32), PAGE_SIZE)
    params = KVCacheParams(
        dtype=torch.float32,
        groups=backends.groups,
        page_size=PAGE_SIZE,
        states=(STATE, *[None] * len(specs)) if num_slots else (),
        **changes,
    )
    return PagedKVCacheManager(params, [num_pages] * len(reaches), backends, CPU, num_slots)


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
    assert params.page_bytes[0] == 2 * 1 * 1 * 2 * 4 * PAGE_SIZE
    assert PagedKVCacheManager.estimated_memory_size(params, 3, 9, 9, 10**9) == 9 * params.page_bytes[0]
    assert PagedKVCacheManager.estimated_memory_size(params, 3, 9, 9, 5 * params.page_bytes[0] + 1) == (
        5 * params.page_bytes[0]
    )
    assert PagedKVCacheManager.max_supported_sequence_length(params, 5 * params.page_bytes[0]) == 20
    assert PagedKVCacheManager.infer_optimal_batch_size(params, 9, 9, 7 * params.page_bytes[0]) == 2


def pages_of(manager, request_id="a", group=0):
    return manager._claims[request_id].holdings[group].pages


def test_pages_behind_the_window_are_free_for_others():
    manager = make_manager(num_pages=4, sliding_window=6, enable_prefix_caching=False)
    context = make_context(list(range(9)))
    manager.external_claim(context)
    run_step(manager, context)  # position 9 comes next and sees 4 to 9
    first = pages_of(manager)
    assert first == [NO_PAGE, 1, 2]
    assert manager.num_free_pages == 2
    assert manager.used_pages_pct == 50
    other = make_context(list(range(8)), "other")
    manager.external_claim(other)
    run_step(manager, other, 6)
    assert sorted(pages_of(manager, "other")) == [0, 3]
    manager.check_integrity()
    manager.release("other")
    for _ in range(100):
        run_step(manager, context)
        assert 4 - manager.num_free_pages <= 3
    assert context.cache_length == 109
    manager.release("a")
    assert manager.num_free_pages == 4


@pytest.mark.parametrize("window", [1, 2, 4, 5, 6, 9])
def test_exactly_the_pages_that_the_next_token_sees_are_kept(window):
    manager = make_manager(num_pages=64, sliding_window=window, enable_prefix_caching=False)
    context = make_context(list(range(30)))
    manager.external_claim(context)
    for num_tokens in (3, 11, 1, 7, 8, *[1] * 20):
        run_step(manager, context, num_tokens)
        following = context.cache_length
        seen = {position // PAGE_SIZE for position in range(max(0, following - window + 1), following)}
        held = {index for index, page in enumerate(pages_of(manager)) if page != NO_PAGE}
        assert held - {following // PAGE_SIZE} == seen - {following // PAGE_SIZE}
        manager.check_integrity()


def test_pages_of_a_draft_that_did_not_come_true_are_free():
    """In every group, whether or not its pages expire; those of tokens that came stay."""
    manager = make_manager(num_pages=20, reaches=[{}, {"sliding_window": 6}])
    context = make_context(list(range(PAGE_SIZE * 3)))
    manager.external_claim(context)
    run_step(manager, context)
    free = manager.num_free_pages
    for token in (50, 60):
        context.set_chunk(1)
        context.set_draft([50] * 8)
        assert manager.maybe_reserve(context)
        assert manager.num_free_pages < free - 2
        context.advance(token)
        if context.is_followed:
            context.advance(51)
        manager.step([context])
        manager.shrink(context)
        manager.check_integrity()
    assert context.cache_length == PAGE_SIZE * 3 + 3
    assert manager.num_free_pages == free - 2 + 1  # one page more in each group, and one behind the window
    run_step(manager, context)  # fills the page
    assert manager.num_free_pages == free - 2 + 1


def test_a_window_needs_only_the_end_of_a_prefix():
    """Pages 0 and 1 of a prompt of 4 pages are taken by others; its last two suffice for whoever goes on there."""
    manager = make_manager(num_pages=6, sliding_window=6)
    first = make_context(list(range(17)), "first")
    manager.external_claim(first)
    run_step(manager, first)
    other = make_context(list(range(100, 109)), "other")  # one empty page, then those given back first: 0 and 1
    manager.external_claim(other)
    run_step(manager, other)
    assert manager.metrics.evicted_pages == 2
    manager.release("other")
    again = make_context(list(range(17)), "again")
    manager.external_claim(again)
    assert again.cache_length == 16
    assert pages_of(manager, "again") == [NO_PAGE, NO_PAGE, 2, 3]
    assert pages_of(manager, "first") == [NO_PAGE, NO_PAGE, NO_PAGE, 3, 4]
    shorter = make_context(list(range(12)), "shorter")  # would go on at page 2, and sees page 1
    manager.external_claim(shorter)
    assert shorter.cache_length == 0
    manager.check_integrity()


def test_several_steps_at_once_with_a_window():
    manager = make_manager(num_pages=5, sliding_window=4)
    context = make_context(list(range(5)))
    manager.external_claim(context)
    context.set_chunk(5)
    assert not manager.maybe_reserve(context, num_steps=17)
    assert manager.maybe_reserve(context, num_steps=16)
    for remaining in range(16, 0, -1):
        manager.fetch([context], remaining)
        context.advance(0)
        manager.step([context])
        context.set_chunk(1)
        manager.check_integrity()
    assert pages_of(manager)[:4] == [NO_PAGE] * 4
    assert manager.num_free_pages == 4


@pytest.mark.parametrize("window", [1, 3, 4, 5, 8, 9, None])
@pytest.mark.parametrize("max_chunk", [1, 2, 4, 7])
def test_tokens_held_are_the_most_ever_held(window, max_chunk):
    """Against a request that is fed chunks from every position: its pages from the first it sees to the last."""
    params = make_manager(sliding_window=window).params
    for num_tokens in (1, 5, 12, 50):
        most = max(
            end // PAGE_SIZE - (max(0, start - window + 1) // PAGE_SIZE if window else 0) + 1
            for start in range(num_tokens)
            for end in range(start, min(start + max_chunk, num_tokens))
        )
        assert params.num_pages_held(num_tokens, max_chunk)[0] in (most, most + (num_tokens < 50))


def test_how_long_a_request_may_be_in_a_few_pages():
    """A window of 6 tokens lies in 3 pages of 4 when it begins with the last token of one."""
    params = make_manager(sliding_window=6).params
    assert params.max_tokens_in([2]) == 8
    assert params.max_tokens_in([3]) == sys.maxsize
    assert make_manager().params.max_tokens_in([3]) == 12
    assert make_manager(num_pages=2, sliding_window=6).max_num_tokens == 8
    assert PagedKVCacheManager.max_supported_sequence_length(params, 3 * params.page_bytes[0]) == sys.maxsize


def test_a_group_without_pages_takes_none_from_the_others():
    """All or nothing: the window's pages came back, those of the layers that see all did not."""
    manager = make_manager(num_pages=4, reaches=[{}, {"sliding_window": 4}])
    context = make_context(list(range(12)))
    manager.external_claim(context)
    run_step(manager, context, 12)
    assert [page != NO_PAGE for page in pages_of(manager, group=1)] == [False, False, True]
    other = make_context(list(range(50, 58)), "other")
    manager.external_claim(other)
    other.set_chunk(8)
    free = manager.num_free_pages
    assert free == 1 + 3
    assert not manager.maybe_reserve(other)
    assert manager.num_free_pages == free
    manager.check_integrity()


def test_a_prefix_that_one_group_has_lost_is_not_gone_on_from():
    """Layers with a window keep fewer pages idle; where theirs are taken, a shorter prefix is found, or none."""
    manager = make_manager(num_pages=7, reaches=[{}, {"sliding_window": 5}])
    first = make_context(list(range(17)), "first")
    manager.external_claim(first)
    run_step(manager, first)
    again = make_context(list(range(17)), "again")
    manager.external_claim(again)
    assert again.cache_length == 16
    assert pages_of(manager, "again")[:4] == pages_of(manager, "first")[:4]
    assert pages_of(manager, "again", 1) == [NO_PAGE] * 3 + [pages_of(manager, "first", 1)[3]]
    manager.release("again")
    manager._books.groups[1].pool.release(
        pages_of(manager, "first", 1)[4], keep=False
    )  # as if the first were gone there
    manager._books.groups[1]._prefix_cache.forget(pages_of(manager, "first", 1)[3:4])
    shorter = make_context(list(range(17)), "shorter")
    assert manager.num_known_pages(shorter) == 3  # whose window begins with page 2, idle and known


def test_memory_is_divided_so_that_both_long_and_short_requests_fit():
    """Pages of 4 tokens, 64 bytes in each group; one request of 100 tokens holds 25 pages and, with a window, 2."""
    params = make_manager(reaches=[{}, {"sliding_window": 5}]).params
    assert params.page_bytes == (64, 64)
    assert params.num_pages_held(100, 1) == (25, 2)
    assert params.num_pages_held(100, 8) == (25, 4)
    assert params.longest_in(27 * 64) == 100
    assert params.longest_in(26 * 64) == 96
    assert params.divide(27 * 64, 4, 100, 8) == (25, 2)
    assert params.divide(1000 * 64, 4, 100, 8) == (1000 - 16, 16)  # a full batch's windows
    assert params.divide(30 * 64, 4, 100, 8) == (25, 5)  # what the longest request leaves
    assert params.divide(20 * 64, 4, 100, 8) == (10, 10)  # too little for that one: short ones find room


@pytest.mark.parametrize(
    "reaches",
    [
        [{}],
        [{"sliding_window": 6}],
        [{}, {"sliding_window": 6}],
        [{}, {"chunk": 8}],
        [{"sliding_window": 64}, {"sliding_window": 6}],
        [{}, {"sliding_window": 64}, {"chunk": 8}],
    ],
)
def test_what_is_divided_is_no_more_than_there_is_and_fits_the_longest(reaches):
    params = make_manager(reaches=reaches).params
    for num_bytes in range(0, 6000, 37):
        for num_tokens in (1, 9, 40, 90):
            pages = params.divide(num_bytes, 3, num_tokens, 5)
            assert params.size_of(pages) <= num_bytes
            if num_tokens <= params.longest_in(num_bytes):
                assert params.max_tokens_in(pages) >= num_tokens
            most = max(1, min(num_tokens, params.max_tokens_in(pages)))
            assert params.max_tokens_in(params.divide(num_bytes, 3, most, 5)) >= min(most, params.longest_in(num_bytes))


def slots_of_step(manager, context, num_tokens=None):
    """Runs a step; returns which slot it reads and which it writes."""
    context.set_chunk(num_tokens or min(context.num_pending, manager.most_at_once(context)))
    assert manager.maybe_reserve(context)
    batch = manager.fetch([context]).batch
    context.advance(0 if context.samples else None)
    manager.step([context])
    manager.check_integrity()
    return batch.read_slots + batch.write_slots


def test_a_state_is_kept_at_the_last_page_end_of_a_prompt_and_at_each_that_decoding_reaches():
    """What was written stays, for others; without them, a state stays where it is."""
    manager = make_manager(num_slots=5)
    context = make_context(list(range(10)))
    manager.external_claim(context)
    assert manager.most_at_once(context) == 8
    assert slots_of_step(manager, context) == [NO_SLOT, 0]
    assert [slots_of_step(manager, context) for _ in range(5)] == [[0, 1], [1, 1], [1, 1], [1, 2], [2, 2]]
    for count, end in ((10, 8), (13, 12)):
        other = make_context(context.tokens[:count], f"other{count}")
        manager.external_claim(other)
        assert other.cache_length == end
        assert slots_of_step(manager, other)[0] == {8: 0, 12: 1}[end]
    alone = make_manager(num_slots=5, enable_prefix_caching=False)
    context = make_context(list(range(10)))
    alone.external_claim(context)
    assert [slots_of_step(alone, context) for _ in range(4)] == [[NO_SLOT, 0], [0, 0], [0, 0], [0, 0]]
    assert context.cache_length == 13


def test_without_a_snapshot_known_pages_are_computed_anew():
    """And where they end, there is one then; of a chunk that goes over it, at the last end alone."""
    manager = make_manager(num_pages=30, num_slots=6)
    first = make_context(list(range(22)), "first")
    manager.external_claim(first)
    slots_of_step(manager, first)
    second = make_context([*range(9), *[50] * 9], "second")
    manager.external_claim(second)
    assert (second.cache_length, manager.most_at_once(second)) == (0, 8)
    slots_of_step(manager, second, 16)
    third = make_context([*range(9), *[60] * 9], "third")
    manager.external_claim(third)
    assert (third.cache_length, manager.most_at_once(third)) == (0, 8)
    slots_of_step(manager, third)
    fourth = make_context([*range(9), *[70] * 9], "fourth")
    manager.external_claim(fourth)
    assert (fourth.cache_length, manager.most_at_once(fourth)) == (8, 8)
    for name in ("first", "second", "third", "fourth"):
        manager.release(name)
    manager.reset_prefix_cache()
    assert manager.num_known_pages(make_context(list(range(22)))) == 0
    manager.check_integrity()


def test_without_a_slot_nothing_is_reserved():
    manager = make_manager(num_slots=1)
    first, second = make_context([1, 2], "first"), make_context([3, 4], "second")
    for context in (first, second):
        manager.external_claim(context)
        context.set_chunk(2)
    assert manager.maybe_reserve(first)
    free = manager.num_free_pages
    assert not manager.maybe_reserve(second)
    assert manager.num_free_pages == free
    with pytest.raises(InsufficientPagesError, match=r"pages: 7 free of 8; slots for states: 0 free of 1"):
        manager.fetch([second])
    manager.release("first")
    assert manager.maybe_reserve(second)


def test_what_is_reserved_for_several_steps_holds_for_all_of_them():
    """Whoever finds no slot to go on in leaves no snapshot: of three requests with three slots, nobody does."""
    manager = make_manager(num_pages=30, num_slots=3)
    contexts = [make_context([number] * 5, str(number)) for number in range(3)]
    for context in contexts:
        manager.external_claim(context)
        context.set_chunk(5)
        assert manager.maybe_reserve(context, num_steps=12)
    for remaining in range(12, 0, -1):
        manager.fetch(contexts, remaining)
        for context in contexts:
            context.advance(0)
            context.set_chunk(1)
        manager.step(contexts)
        manager.check_integrity()
    assert [context.cache_length for context in contexts] == [16] * 3
    assert manager.num_known_pages(make_context(contexts[0].tokens)) == 0
    manager.release("1")
    assert [slots_of_step(manager, contexts[0]) for _ in range(5)] == [[0, 0]] * 4 + [[0, 1]]
    assert manager.num_known_pages(make_context(contexts[0].tokens)) == 5  # there is room for its last one now


def decoded(manager, context, num_tokens):
    manager.external_claim(context)
    while context.cache_length < len(context.tokens) + num_tokens - context.num_generated - 1:
        slots_of_step(manager, context)


def test_a_long_answer_leaves_others_their_snapshots():
    """Of its own it keeps the prompt's, the latest, and those that somebody has gone on from."""
    manager = make_manager(num_pages=60, num_slots=6)
    prompt, answer = make_context([9] * 9, "prompt"), make_context(list(range(9)), "answer")
    decoded(manager, prompt, 1)
    manager.release("prompt")
    decoded(manager, answer, 8)
    assert answer.cache_length == 16
    other = make_context(answer.tokens[:17], "other")
    decoded(manager, other, 1)
    manager.release("other")
    for _ in range(10 * PAGE_SIZE):
        slots_of_step(manager, answer)
    tokens = answer.tokens
    manager.release("answer")
    ends = [end for end in range(4, 60, 4) if manager.num_known_pages(make_context([*tokens[:end], 99])) == end // 4]
    assert ends == [8, 16, 56]
    assert manager.num_known_pages(make_context([9] * 9)) == 2


def test_a_snapshot_that_is_computed_again_is_the_last_to_be_given_up():
    """As one is that is gone on from: a prompt that is echoed is computed whole."""
    manager = make_manager(num_pages=60, num_slots=3)
    for number in (1, 2):
        decoded(manager, make_context([number] * 5, str(number)), 1)
        manager.release(str(number))
    decoded(manager, make_context([1] * 5, "again", echo=True, log_probabilities=1), 1)
    manager.release("again")
    decoded(manager, make_context([3] * 5, "other"), 1)
    assert [manager.num_known_pages(make_context([number] * 5)) for number in (1, 2, 3)] == [1, 0, 1]


def test_a_step_that_did_not_come_to_its_end_is_not_run_again():
    """It may have written states, in which the same tokens would count twice. Pages are only written anew."""
    manager = make_manager(num_slots=5)
    context, other = make_context([1, 2, 3]), make_context([4, 5, 6], "other")
    for each in (context, other):
        manager.external_claim(each)
        run_step(manager, each)
        each.set_chunk(1)
        manager.maybe_reserve(each)
    manager.fetch([context])
    for batch in ([context], [other, context]):
        with pytest.raises(InvalidRequestError, match="step of this request failed"):
            manager.fetch(batch)
    run_step(manager, other)
    manager.release("a")
    again = make_context([1, 2, 3])
    manager.external_claim(again)
    run_step(manager, again)
    pages_alone = make_manager()
    pages_alone.external_claim(context := make_context([1, 2, 3]))
    context.set_chunk(3)
    pages_alone.maybe_reserve(context)
    pages_alone.fetch([context])
    pages_alone.fetch([context])


def test_bytes_of_states():
    """Of 6 and 5 numbers of 4 bytes in each slot; two slots for each request, or one where none leaves a snapshot."""
    params = make_manager(num_slots=1).params
    assert params.slot_bytes == 44
    assert params.state_bytes(3) == 6 * 44
    assert make_manager(num_slots=1, enable_prefix_caching=False).params.state_bytes(3) == 3 * 44
    assert make_manager().params.state_bytes(3) == 0


REACHES = st.sampled_from([{}, *({"sliding_window": n} for n in (1, 3, 4, 6, 9)), {"chunk": 4}, {"chunk": 6}])


class ManagerMachine(RuleBasedStateMachine):
    """Random claims, steps and releases; the model is a plain dict of what was written where."""

    @initialize(
        num_pages=st.integers(3, 12),
        reaches=st.lists(REACHES, min_size=1, max_size=3, unique_by=str),
        num_slots=st.sampled_from([0, 1, 2, 3, 6]),
    )
    def start(self, num_pages, reaches, num_slots):
        self.manager = make_manager(num_pages=num_pages, reaches=reaches, num_slots=num_slots)
        self.reaches = reaches
        self.num_slots = num_slots
        self.states = {}  # slot -> the tokens that the state there has seen
        self.contexts = {}
        self.written = {}  # (group, page, slot) -> the token there and all before it: what its key depends on
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
    @rule(data=st.data(), token=st.integers(0, 2), num_steps=st.integers(1, 6))
    def step(self, data, token, num_steps):
        context = data.draw(st.sampled_from(list(self.contexts.values())))
        context.set_chunk(data.draw(st.integers(1, context.num_pending)))
        free = self.manager.num_free_pages
        if not context.samples:
            num_steps = 1
        if not self.manager.maybe_reserve(context, num_steps):
            assert self.manager.num_free_pages == free
            return
        for remaining in range(num_steps, 0, -1):
            self.feed(context, token, self.manager.fetch([context], remaining).batch)
            if remaining > 1:
                context.set_chunk(1)

    def feed(self, context, token, batch):
        start, end = context.cache_length, context.cache_length + context.active_length
        if self.num_slots:
            (read,), (write,) = batch.read_slots, batch.write_slots
            assert (self.states[read] if read != NO_SLOT else []) == context.tokens[:start]
            self.states[write] = context.tokens[:end]
        for position in range(start, end):
            for group in range(len(self.reaches)):
                page = pages_of(self.manager, context.request_id, group)[position // PAGE_SIZE]
                assert page != NO_PAGE
                self.written[group, page, position % PAGE_SIZE] = context.tokens[: position + 1]
            self.sees_its_own(context, position)
        context.advance(token if context.samples else None)
        self.manager.step([context])

    def sees_its_own(self, context, last):
        for group in range(len(self.reaches)):
            pages = pages_of(self.manager, context.request_id, group)
            for position in range(self.first_seen(group, last), last):
                page = pages[position // PAGE_SIZE]
                assert self.written[group, page, position % PAGE_SIZE] == context.tokens[: position + 1]

    def first_seen(self, group, position):
        reach = self.reaches[group]
        return first_visible(position, reach.get("sliding_window"), reach.get("chunk"))

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
    def states_are_those_of_the_tokens_fed(self):
        """Of each request, and of each snapshot that somebody may find."""
        if getattr(self, "num_slots", 0):
            for request_id, context in self.contexts.items():
                read = self.manager._claims[request_id].state.read
                assert (self.states[read] if read != NO_SLOT else []) == context.tokens[: context.cache_length]
            for slot, hash_ in self.manager._books.states._snapshots._hash_by_page.items():
                assert self.hash_of(self.states[slot]) == hash_

    def hash_of(self, tokens):
        claim = Claim(self.manager._root, [])
        for start in range(0, len(tokens), PAGE_SIZE):
            claim.hashes.append(claim.next_hash(tokens[start : start + PAGE_SIZE]))
        return claim.hashes[-1]

    @invariant()
    def the_next_token_sees_its_own_past_and_nothing_before_is_held(self):
        for request_id, context in getattr(self, "contexts", {}).items():
            self.sees_its_own(context, context.cache_length)
            for group in range(len(self.reaches)):
                first = self.first_seen(group, context.cache_length) // PAGE_SIZE
                assert all(page == NO_PAGE for page in pages_of(self.manager, request_id, group)[:first])

    def teardown(self):
        for request_id in list(getattr(self, "contexts", {})):
            self.manager.release(request_id)
        if hasattr(self, "manager"):
            assert self.manager.num_free_pages == self.manager.total_num_pages
            assert not self.num_slots or self.manager._books.states.pool.num_free == self.num_slots


ManagerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestManagerMachine = ManagerMachine.TestCase
