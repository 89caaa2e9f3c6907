"""The scheduler's decisions, step by step, over a real KV cache manager and a model that only counts."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipezoo_core.attention import AttentionBackends, AttentionSpec
from pipezoo_core.config import AttentionName, LoRAConfig
from pipezoo_core.context import TextContext
from pipezoo_core.errors import AdapterInUseError, InsufficientPagesError
from pipezoo_core.kv_cache import KVCacheParams, PagedKVCacheManager
from pipezoo_core.lora import LoRAManager
from pipezoo_core.native import NativeKernels
from pipezoo_core.paging import NO_SLOT
from pipezoo_core.recurrence import StateSpec
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_core.scheduling import Scheduler, get_or_recommend_replica

PAGE_SIZE = 4
CPU = torch.device("cpu")


STATE = StateSpec(((2,),))


def make_manager(num_pages=64, enable_prefix_caching=False, sliding_window=None, windows=None, num_slots=0):
    """A manager of a group of layers for each window, with as many pages each; with slots, of a state, too."""
    windows = windows or [sliding_window]
    specs = [AttentionSpec(num_heads=1, num_kv_heads=1, head_dim=2, scale=1.0, sliding_window=w) for w in windows]
    layers = [*specs, STATE] if num_slots else specs
    backends = AttentionBackends(AttentionName.paged, layers, NativeKernels(CPU, torch.float32), PAGE_SIZE)
    params = KVCacheParams(
        dtype=torch.float32,
        groups=backends.groups,
        page_size=PAGE_SIZE,
        enable_prefix_caching=enable_prefix_caching,
        states=(*[None] * len(specs), STATE) if num_slots else (),
    )
    return PagedKVCacheManager(params, [num_pages] * len(windows), backends, CPU, num_slots)


def make_scheduler(max_batch_size=4, max_batch_tokens=16, **settings):
    manager = make_manager(**settings)
    return Scheduler([manager], max_batch_size=max_batch_size, max_batch_tokens=max_batch_tokens), manager


def make_context(request_id, prompt_length, max_new_tokens=4, *, priority=0, lora=None):
    return TextContext(
        request_id=request_id,
        prompt_tokens=list(range(prompt_length)),
        max_length=200,
        sampling_params=SamplingParams(max_new_tokens=max_new_tokens, priority=priority),
        lora=lora,
    )


def make_lora_manager(num_slots):
    """With adapters `a`, `b` and `c`, and a module that computes nothing."""
    config = LoRAConfig(max_num_loras=num_slots, max_lora_rank=1)
    manager = LoRAManager(config, SimpleNamespace(fill=lambda slot, layers: None), dict)
    manager._adapters = {name: SimpleNamespace(serial=serial, layers={}) for serial, name in enumerate("abc")}
    return manager


def step(scheduler, manager):
    """Runs one step and returns how many tokens of each request it fed."""
    inputs = scheduler.schedule()
    fed = {context.request_id: context.active_length for context in inputs.batch}
    if inputs.batches:
        manager.fetch(inputs.batch)
    for context in inputs.batch:
        context.advance(1 if context.samples else None)
    manager.step(inputs.batch)
    for context in inputs.batch:
        if context.status.is_done:
            scheduler.remove(context.request_id)
    manager.check_integrity()
    return fed


def test_decodes_come_first_and_prompts_share_what_is_left():
    scheduler, manager = make_scheduler()
    scheduler.add(make_context("a", 3))
    assert step(scheduler, manager) == {"a": 3}
    scheduler.add(make_context("b", 20))
    scheduler.add(make_context("c", 20))
    assert step(scheduler, manager) == {"a": 1, "b": 15}
    assert step(scheduler, manager) == {"a": 1, "b": 5, "c": 10}
    assert step(scheduler, manager) == {"a": 1, "b": 1, "c": 10}
    assert step(scheduler, manager) == {"b": 1, "c": 1}


def test_a_request_is_reserved_once_in_a_step():
    """When it is let in, while it is fed in chunks, and while it decodes."""
    scheduler, manager = make_scheduler()
    real, seen = manager.maybe_reserve, []
    manager.maybe_reserve = lambda context, *num_steps: (seen.append(context.request_id), real(context, *num_steps))[1]
    scheduler.add(make_context("a", 3))
    scheduler.add(make_context("b", 30))
    for expected in ({"a": 3, "b": 13}, {"a": 1, "b": 15}, {"a": 1, "b": 2}, {"a": 1, "b": 1}):
        seen.clear()
        assert step(scheduler, manager) == expected
        assert sorted(seen) == ["a", "b"]


def test_batch_size_is_bounded_and_order_is_kept():
    scheduler, manager = make_scheduler(max_batch_size=2)
    for name in "abc":
        scheduler.add(make_context(name, 2, max_new_tokens=2))
    assert list(step(scheduler, manager)) == ["a", "b"]
    assert list(step(scheduler, manager)) == ["a", "b"]
    assert list(step(scheduler, manager)) == ["c"]


def test_a_prefix_is_computed_once():
    """Four requests come together, with 12 tokens in common: the first computes them, the others wait and share.

    Who has nothing in common with them passes those that wait.
    """
    scheduler, manager = make_scheduler(max_batch_tokens=32, enable_prefix_caching=True)
    contexts = [make_context(name, 14) for name in "abc"] + [make_context("other", 7)]
    for name, context in zip("abc", contexts, strict=False):
        context.tokens[12:] = [ord(name)] * 2
    contexts[3].tokens[:] = [9] * 7
    for context in contexts:
        scheduler.add(context)
    assert step(scheduler, manager) == {"a": 14, "other": 7}
    assert step(scheduler, manager) == {"a": 1, "b": 2, "c": 2, "other": 1}
    for context in contexts:
        scheduler.remove(context.request_id)
    assert not manager._books.upcoming


def test_who_waits_for_a_prefix_is_passed_and_comes_first_when_it_is_there():
    """The batch has room for two: whoever passes takes a place only while the first in the queue cannot have it."""
    scheduler, manager = make_scheduler(max_batch_size=2, max_batch_tokens=8, enable_prefix_caching=True)
    long, alike = make_context("long", 24, max_new_tokens=2), make_context("alike", 24, max_new_tokens=2)
    scheduler.add(long)
    assert step(scheduler, manager) == {"long": 8}
    scheduler.add(alike)
    for name in ("x", "y", "z"):
        other = make_context(name, 3, max_new_tokens=1)
        other.tokens[:] = [ord(name)] * 3
        scheduler.add(other)
    assert step(scheduler, manager) == {"long": 8}  # the budget is used up, and nobody else begins
    assert step(scheduler, manager) == {"long": 8}
    assert step(scheduler, manager) == {"long": 1, "alike": 4}
    assert step(scheduler, manager) == {"alike": 1, "x": 3}
    assert step(scheduler, manager) == {"y": 3, "z": 3}


def test_nobody_passes_for_long():
    """However many come behind it, a request waits for its prefix, and for the places of those that passed it."""
    scheduler, manager = make_scheduler(max_batch_size=2, max_batch_tokens=16, enable_prefix_caching=True)
    scheduler.add(make_context("long", 20, max_new_tokens=1))
    scheduler.add(make_context("alike", 20, max_new_tokens=1))
    begun = []
    for number in range(8):
        other = make_context(str(number), 3, max_new_tokens=1)
        other.tokens[:] = [100 + number] * 3
        scheduler.add(other)
        begun.extend(step(scheduler, manager))
    assert begun[:4] == ["long", "long", "0", "alike"]


def test_who_waits_for_a_prefix_goes_on_when_its_owner_is_gone():
    scheduler, manager = make_scheduler(enable_prefix_caching=True)
    for name in "ab":
        scheduler.add(make_context(name, 40))
    assert step(scheduler, manager) == {"a": 16}
    assert step(scheduler, manager) == {"a": 16}
    scheduler.remove("a")
    assert step(scheduler, manager) == {"b": 8}
    scheduler.remove("b")
    assert not manager._books.upcoming


def test_a_prompt_is_fed_to_the_end_where_its_state_is_kept_and_others_wait_for_that():
    """One of the same tokens goes on from there. One whose tokens are others after 8 has nothing to wait for.

    It keeps a state at 8 itself, since there it parts from the first.
    """
    scheduler, manager = make_scheduler(max_batch_tokens=64, enable_prefix_caching=True, num_slots=9)
    contexts = {name: make_context(name, 19, max_new_tokens=2) for name in ("first", "alike", "apart", "late")}
    for name in ("apart", "late"):
        contexts[name].tokens[8:] = [50] * 11
    for name in ("first", "alike"):
        scheduler.add(contexts[name])
    assert step(scheduler, manager) == {"first": 16}
    assert step(scheduler, manager) == {"first": 3, "alike": 3}
    scheduler.add(contexts["apart"])
    assert step(scheduler, manager) == {"first": 1, "alike": 1, "apart": 8}
    scheduler.add(contexts["late"])  # waits for what apart keeps at 16
    assert step(scheduler, manager) == {"apart": 8}
    assert step(scheduler, manager) == {"apart": 3, "late": 3}
    again = make_context("again", 19)
    again.tokens[8:] = [7] * 11
    scheduler.add(again)
    assert step(scheduler, manager) == {"apart": 1, "late": 1, "again": 8}
    assert again.cache_length == 16  # from the state at 8


def test_who_comes_while_the_same_prompt_is_computed_waits_for_its_end():
    """However far the first one is: that pages are known and no state is, is nothing to compute the prompt again for.

    One that is the same as far as the first has come, and then differs, has nothing to wait for.
    """
    scheduler, manager = make_scheduler(max_batch_tokens=10, enable_prefix_caching=True, num_slots=9)
    first, alike, apart = (make_context(name, 27, max_new_tokens=9) for name in ("first", "alike", "apart"))
    apart.tokens[8:] = [50] * 19
    scheduler.add(first)
    assert step(scheduler, manager) == {"first": 10}
    for context in (alike, apart):
        scheduler.add(context)
    assert step(scheduler, manager) == {"first": 10}
    assert step(scheduler, manager) == {"first": 4, "apart": 6}
    assert step(scheduler, manager) == {"first": 3, "apart": 2, "alike": 3}


def test_states_never_keep_a_request_from_running():
    """All slots are snapshots, and each running request needs two at a time: one to read, one to write."""
    scheduler, manager = make_scheduler(max_batch_size=3, max_batch_tokens=64, enable_prefix_caching=True, num_slots=6)
    for number in range(12):
        context = make_context(str(number), 9, max_new_tokens=9)
        context.tokens[:] = [number % 5] * 9
        scheduler.add(context)
    while left := scheduler.num_running + scheduler.num_waiting:
        assert len(step(scheduler, manager)) == min(3, left)
    assert scheduler.num_preemptions == 0


def test_youngest_is_preempted_and_nothing_is_lost():
    scheduler, manager = make_scheduler(num_pages=4)
    old, young = make_context("old", 8, max_new_tokens=8), make_context("young", 7, max_new_tokens=8)
    scheduler.add(old)
    scheduler.add(young)
    for _ in range(100):
        if not step(scheduler, manager):
            break
    assert scheduler.num_preemptions > 0
    assert old.num_generated == young.num_generated == 8
    assert manager.num_free_pages == 4


def test_the_oldest_always_gets_on():
    """With room for one and a bit, every step brings the oldest running request further."""
    scheduler, manager = make_scheduler(num_pages=5, max_batch_tokens=6)
    contexts = [make_context(str(i), 7 + i, max_new_tokens=9) for i in range(4)]
    for context in contexts:
        scheduler.add(context)
    for _ in range(300):
        oldest = next((c for c in contexts if not c.status.is_done), None)
        if oldest is None:
            break
        fed = step(scheduler, manager)
        assert oldest.request_id in fed
    assert all(context.num_generated == 9 for context in contexts)


def test_a_request_that_can_never_fit_is_refused_and_the_next_one_runs():
    scheduler, manager = make_scheduler(num_pages=2)
    with pytest.raises(InsufficientPagesError, match="allowed: 9 tokens"):
        scheduler.add(make_context("big", 6, max_new_tokens=4))
    scheduler.add(make_context("fits", 6, max_new_tokens=3))
    while step(scheduler, manager):
        pass
    assert manager.num_free_pages == 2


def test_removed_requests_give_back_their_pages():
    scheduler, manager = make_scheduler()
    scheduler.add(make_context("running", 5))
    step(scheduler, manager)
    scheduler.add(make_context("waiting", 5))
    scheduler.remove("running")
    scheduler.remove("waiting")
    scheduler.remove("unknown")
    assert manager.num_free_pages == manager.total_num_pages
    assert scheduler.schedule().batch == []


def test_waiting_requests_cost_nothing():
    """A step looks at the requests it can run, not at the queue behind them."""
    scheduler, manager = make_scheduler(max_batch_size=2)
    for i in range(10_000):
        scheduler.add(make_context(str(i), 4))
    seen = []
    real = manager.external_claim
    manager.external_claim = lambda context: (seen.append(context.request_id), real(context))
    step(scheduler, manager)
    step(scheduler, manager)
    assert seen == ["0", "1"]


def test_a_request_longer_than_the_cache_runs_when_its_window_fits():
    """A window of 6 tokens lies in up to 3 pages of 4; the fourth leaves room for chunks, which adapt to it."""
    scheduler, manager = make_scheduler(num_pages=4, sliding_window=6)
    context = make_context("long", 100, max_new_tokens=50)
    scheduler.add(context)
    chunks = []
    while fed := step(scheduler, manager):
        chunks.append(fed["long"])
    assert chunks == [16, *[8] * 10, 4, *[1] * 49]
    assert scheduler.num_preemptions == 0
    assert manager.num_free_pages == 4


def test_without_room_for_the_window_a_long_request_is_refused():
    scheduler, _ = make_scheduler(num_pages=2, sliding_window=6)
    with pytest.raises(InsufficientPagesError, match="allowed: 9 tokens"):
        scheduler.add(make_context("long", 20))
    scheduler.add(make_context("short", 5))


def test_a_long_prompt_with_a_window_leaves_room_for_others():
    """It reserves what it holds at the same time, window and chunk, and not pages for its 150 tokens."""
    scheduler, manager = make_scheduler(num_pages=16, max_batch_tokens=8, sliding_window=6)
    for name in ("a", "b", "c"):
        scheduler.add(make_context(name, 150, max_new_tokens=4))
    step(scheduler, manager)
    assert scheduler.num_running == 1
    for _ in range(60):
        step(scheduler, manager)
        assert manager.total_num_pages - manager.num_free_pages <= 13
    while step(scheduler, manager):
        pass
    assert scheduler.num_preemptions == 0


@pytest.mark.parametrize("enable_prefix_caching", [False, True])
@pytest.mark.parametrize("num_pages", [4, 5, 9])
def test_with_a_window_everything_gets_done_however_few_pages_there_are(num_pages, enable_prefix_caching):
    scheduler, manager = make_scheduler(
        num_pages=num_pages,
        max_batch_tokens=7,
        sliding_window=9,
        enable_prefix_caching=enable_prefix_caching,
    )
    contexts = [make_context(str(i), 1 + 13 * i % 60, max_new_tokens=3 + 7 * i % 20) for i in range(12)]
    for context in contexts:
        scheduler.add(context)
    for _ in range(2000):
        if not step(scheduler, manager):
            break
    assert all(context.status.is_done for context in contexts)
    assert manager.num_free_pages == num_pages


def test_who_waits_for_pages_keeps_no_slot_from_one_that_comes_first():
    manager, loras = make_manager(num_pages=4), make_lora_manager(num_slots=1)
    scheduler = Scheduler([manager], [loras], max_batch_size=4, max_batch_tokens=16)
    contexts = [
        make_context("running", 12),
        make_context("waiting", 12, lora="a"),
        make_context("urgent", 12, priority=-1, lora="b"),
    ]
    for context in contexts:
        scheduler.add(context)
        scheduler.schedule()
    scheduler.remove("running")
    assert list(step(scheduler, manager)) == ["urgent"]
    assert loras.is_active_lora("b")
    with pytest.raises(AdapterInUseError):  # it has no slot, and waits for its adapter all the same
        loras.unload_adapter("a")


class ReplicasMachine(RuleBasedStateMachine):
    """Random requests, steps and removals over several replicas: all that came and was not removed gets done."""

    @initialize(
        num_replicas=st.integers(1, 3),
        num_pages=st.integers(3, 12),
        windows=st.sampled_from([[None], [5], [None, 5], [None, 3, 9]]),
        num_slots=st.integers(1, 3),
        max_batch_size=st.integers(1, 4),
        max_batch_tokens=st.integers(1, 16),
        has_states=st.booleans(),
    )
    def start(self, num_replicas, num_pages, windows, num_slots, has_states, **settings):
        num_states = 2 * settings["max_batch_size"] if has_states else 0
        self.managers = [
            make_manager(num_pages, True, windows=windows, num_slots=num_states) for _ in range(num_replicas)
        ]
        self.lora_managers = [make_lora_manager(num_slots) for _ in range(num_replicas)]
        self.states = [{} for _ in self.managers]  # slot -> the tokens that the state there has seen
        self.scheduler = Scheduler(self.managers, self.lora_managers, **settings)
        self.settings = settings
        self.contexts, self.places = {}, {}
        self.count = 0

    @rule(
        begin=st.integers(0, 2),
        length=st.integers(1, 10),
        max_new_tokens=st.integers(1, 3),
        priority=st.integers(0, 2),
        lora=st.sampled_from([None, "a", "b", "c"]),
    )
    def add(self, begin, length, max_new_tokens, **settings):
        self.count += 1
        context = make_context(str(self.count), length, max_new_tokens, **settings)
        context.tokens[:] = [token + begin for token in context.tokens]
        self.contexts[context.request_id] = context
        self.scheduler.add(context)

    @precondition(lambda self: self.contexts)
    @rule(data=st.data())
    def remove(self, data):
        self.forget(data.draw(st.sampled_from(list(self.contexts))))

    def forget(self, request_id):
        self.scheduler.remove(request_id)
        for manager in self.lora_managers:
            manager.release(request_id)
        del self.contexts[request_id]

    @rule()
    def step(self):
        waiting = [context for context in self.contexts.values() if context.request_id not in self.places]
        first = min(waiting, key=lambda context: context.sampling_params.priority, default=None)
        inputs = self.scheduler.schedule()
        assert bool(inputs.batches) is bool(self.contexts)
        if first is not None and not all(inputs.batches):  # another one computes its next page, or it is there
            alike = [context for context in inputs.batch if context.tokens[:PAGE_SIZE] == first.tokens[:PAGE_SIZE]]
            assert alike
        for replica, (manager, batch) in enumerate(zip(self.managers, inputs.batches, strict=False)):
            assert len(batch) <= self.settings["max_batch_size"]
            assert sum(context.active_length for context in batch.values()) <= self.settings["max_batch_tokens"]
            assert batch or manager.num_free_pages == manager.total_num_pages
            if batch:
                self.feed(self.states[replica], list(batch.values()), manager.fetch(list(batch.values())).batch)
            for context in batch.values():
                assert context.lora is None or self.lora_managers[replica].is_active_lora(context.lora)
                assert self.places.setdefault(context.request_id, replica) == replica
                assert get_or_recommend_replica(self.managers, context) == replica
                context.advance(1 if context.samples else None)
            manager.step(list(batch.values()))
        for context in inputs.batch:
            if context.status.is_done:
                self.forget(context.request_id)

    def feed(self, states, contexts, batch):
        """Reads and writes states as the layers do: all of a batch at once."""
        read, written = batch.read_slots, batch.write_slots
        assert len(read) == len({*written}) == len(written) in (0, len(contexts))
        for number, (context, slot) in enumerate(zip(contexts, read, strict=False)):
            assert (states[slot] if slot != NO_SLOT else []) == context.tokens[: context.cache_length]
            assert slot not in written[:number] + written[number + 1 :]
        for context, slot in zip(contexts, written, strict=False):
            states[slot] = context.tokens[: context.cache_length + context.active_length]

    @rule()
    def reset_prefix_cache(self):
        for manager in getattr(self, "managers", ()):
            manager.reset_prefix_cache()

    @invariant()
    def each_has_pages_in_one_place(self):
        for manager in getattr(self, "managers", ()):
            manager.check_integrity()
        for request_id in getattr(self, "contexts", ()):
            owners = [number for number, manager in enumerate(self.managers) if manager.contains(request_id)]
            assert owners in ([], [self.places.get(request_id)])

    def teardown(self):
        for _ in range(1000):
            if not getattr(self, "contexts", None):
                break
            self.step()
        for manager in getattr(self, "managers", ()):
            assert manager.num_free_pages == manager.total_num_pages
            assert not manager._books.upcoming
            assert (states := manager._books.states) is None or states.pool.num_free == states.pool.num_pages
        for manager in getattr(self, "lora_managers", ()):
            assert not manager._users
            assert not manager._slots._held


ReplicasMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestReplicasMachine = ReplicasMachine.TestCase
