"""KV events: a reader of them knows at every moment what the prefix cache has, in vLLM's words."""

from __future__ import annotations

import asyncio
import random
import socket
from contextlib import closing, suppress

import msgspec
import pytest
import torch
import zmq
from server.running_server import RunningServer

from pipezoo.serve.engine.kv_events import (
    AllBlocksCleared,
    KVEventBatch,
    PageRecorder,
    all_cleared,
    check_pages_suffice,
)
from pipezoo.serve.kv_events import KVEventPublisher, _is_here
from pipezoo.serve.settings import ServeSettings
from pipezoo_core.attention import AttentionBackends, AttentionSpec
from pipezoo_core.config import AttentionName
from pipezoo_core.context import TextContext
from pipezoo_core.errors import InvalidSettingError
from pipezoo_core.kv_cache import KVCacheParams, PagedKVCacheManager
from pipezoo_core.native import NativeKernels
from pipezoo_core.recurrence import StateSpec
from pipezoo_core.sampling_params import SamplingParams

PAGE_SIZE = 4
CPU = torch.device("cpu")
WINDOWS = [None, 6]  # of two groups of layers


def make_manager(num_pages, windows=WINDOWS):
    specs = [AttentionSpec(num_heads=1, num_kv_heads=1, head_dim=2, scale=1.0, sliding_window=w) for w in windows]
    backends = AttentionBackends(AttentionName.paged, specs, NativeKernels(CPU, torch.float32), PAGE_SIZE)
    params = KVCacheParams(dtype=torch.float32, groups=backends.groups, page_size=PAGE_SIZE)
    return PagedKVCacheManager(params, [num_pages] * len(windows), backends, CPU)


def begun(manager, tokens, request_id="a", *, lora=None, **sampling):
    context = TextContext(
        request_id=request_id,
        prompt_tokens=tokens,
        max_length=1000,
        sampling_params=SamplingParams(**sampling),
        lora=lora,
    )
    context.cache_namespace = lora or ""
    manager.external_claim(context)
    return context


def step(manager, context, next_token=0):
    """Feeds what is left of a context; returns whether there are pages for it."""
    context.set_chunk(context.num_pending)
    if not manager.maybe_reserve(context):
        return False
    manager.fetch([context])
    context.advance(next_token)
    manager.step([context])
    return True


def known(manager):
    """(group, hash) of the pages that the books know."""
    return {
        (group, int.from_bytes(hash_[:8], "big"))
        for group, books in enumerate(manager._books.groups)
        for hash_ in books._prefix_cache._page_by_hash
    }


def test_pages_of_a_model_with_states_are_not_told_of():
    state = StateSpec(shapes=((2, 3),))
    attention = AttentionSpec(num_heads=1, num_kv_heads=1, head_dim=2, scale=1.0)
    backends = AttentionBackends(AttentionName.paged, [state, attention], NativeKernels(CPU, torch.float32), PAGE_SIZE)
    params = KVCacheParams(dtype=torch.float32, groups=backends.groups, page_size=PAGE_SIZE, states=(state, None))
    with pytest.raises(InvalidSettingError, match="keep a state"):
        check_pages_suffice(PagedKVCacheManager(params, [4], backends, CPU, 2))
    check_pages_suffice(make_manager(4))


class Reader:
    """Knows nothing but the events, and reads them as plain MessagePack."""

    def __init__(self):
        self.prefixes = {}  # (group, hash) -> all tokens up to the end of the page
        self.past = {}  # likewise, of pages that are gone, too: others may follow them

    def read(self, batch):
        _, events, rank = msgspec.msgpack.decode(batch)
        assert rank == 0
        for event in events:
            getattr(self, event["type"])(event)

    def BlockStored(self, event):
        group, hashes, size = event["group_idx"], event["block_hashes"], event["block_size"]
        parent = event["parent_block_hash"]
        before = [] if parent is None else self.past[group, parent]
        assert len(event["token_ids"]) == len(hashes) * size
        for number, hash_ in enumerate(hashes):
            assert (group, hash_) not in self.prefixes
            before = [*before, *event["token_ids"][number * size : (number + 1) * size]]
            self.prefixes[group, hash_] = self.past[group, hash_] = before

    def BlockRemoved(self, event):
        for hash_ in event["block_hashes"]:
            del self.prefixes[event["group_idx"], hash_]

    def AllBlocksCleared(self, _):
        self.prefixes.clear()


class Subscriber:
    """A socket that subscribes, and what has come over it."""

    def __init__(self, endpoint, topic=b"", *, hwm=0):
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.SUB)
        self.socket.set_hwm(hwm)
        self.socket.setsockopt(zmq.IPV6, 1)
        self.socket.setsockopt(zmq.SUBSCRIBE, topic)
        self.socket.connect(endpoint)

    def receive(self, seconds=20):
        assert self.socket.poll(int(seconds * 1000)), "nothing has come"
        topic, number, data = self.socket.recv_multipart()
        return topic, int.from_bytes(number, "big"), data

    def close(self):
        self._context.destroy(linger=0)


@pytest.fixture
def endpoint(tmp_path):
    return f"ipc://{tmp_path}/events"


@pytest.fixture
def subscriber(endpoint):
    subscriber = Subscriber(endpoint)
    yield subscriber
    subscriber.close()


def encoded(*events, ts=0.0):
    return msgspec.msgpack.encode(KVEventBatch(ts, [*events], 0))


def connected(publisher, subscriber):
    """Publishes nothing, until the subscriber is there; returns the number of the next batch."""
    for number in range(2000):
        publisher.publish([encoded()])
        if subscriber.socket.poll(10):
            while (last := subscriber.receive()[1]) < number:
                pass
            return last + 1
    raise AssertionError("the subscriber has not come")


@pytest.mark.parametrize("seed", range(3))
def test_a_subscriber_knows_whenever_it_is_told_what_the_books_know(endpoint, subscriber, seed):
    draw = random.Random(seed)
    manager, reader, running = make_manager(num_pages=12), Reader(), []
    recorder, publisher = PageRecorder(manager, rank=0), KVEventPublisher(endpoint, topic="kv")
    number = connected(publisher, subscriber)
    kinds = set()
    for turn in range(300):
        what = draw.random()
        if what < 0.02:
            manager.reset_prefix_cache()
        elif what < 0.35 or not running:
            tokens = [draw.randrange(2) for _ in range(draw.randint(1, 20))]
            salt = draw.choice([None, None, "salt"])
            running.append(begun(manager, tokens, str(turn), lora=draw.choice([None, "ada"]), cache_salt=salt))
        elif what < 0.75:
            step(manager, draw.choice(running), draw.randrange(2))
        else:
            manager.release(running.pop(draw.randrange(len(running))).request_id)
        if turn < 299 and draw.random() < 0.5:  # several things happen in a step
            continue
        if recorder.has_events:
            publisher.publish([recorder.taken()])
            topic, received, data = subscriber.receive()
            assert (topic, received) == (b"kv", number)
            number += 1
            kinds |= {event["type"] for event in msgspec.msgpack.decode(data)[1]}
            reader.read(data)
        assert set(reader.prefixes) == known(manager)
        for context in running:
            ends = [key for key, tokens in reader.prefixes.items() if tokens == context.tokens[: len(tokens)]]
            hashes = manager._claims[context.request_id].hashes
            shared = {int.from_bytes(hash_[:8], "big") for hash_ in hashes} & {hash_ for _, hash_ in reader.prefixes}
            assert shared <= {hash_ for _, hash_ in ends}
    asyncio.run(publisher.close())
    assert kinds == {"AllBlocksCleared", "BlockStored", "BlockRemoved"}


def test_an_event_has_vllms_fields():
    manager = make_manager(num_pages=8)
    recorder = PageRecorder(manager, rank=3)
    context = begun(manager, list(range(9)), lora="ada", cache_salt="salt")
    step(manager, context)

    _, events, rank = msgspec.msgpack.decode(recorder.taken())

    hashes = [int.from_bytes(hash_[:8], "big") for hash_ in manager._claims["a"].hashes]
    alike = {
        "type": "BlockStored",
        "block_hashes": hashes,
        "parent_block_hash": None,
        "token_ids": list(range(8)),
        "block_size": PAGE_SIZE,
        "lora_id": None,
        "medium": None,
        "lora_name": "ada",
        "extra_keys": [["ada", "salt"], ["ada"]],
    }
    window = {"kv_cache_spec_kind": "sliding_window", "kv_cache_spec_sliding_window": 6}
    assert rank == 3
    assert [event for event in events if event.get("group_idx") == 0] == [
        {**alike, "group_idx": 0, "kv_cache_spec_kind": "full_attention"},
    ]
    assert [event for event in events if event.get("group_idx") == 1] == [{**alike, "group_idx": 1, **window}]
    assert events[0] == {"type": "AllBlocksCleared"}


def test_all_groups_are_cleared_by_one_event():
    manager = make_manager(num_pages=8)
    recorder = PageRecorder(manager, rank=0)
    recorder.taken()
    step(manager, begun(manager, list(range(9))))

    manager.reset_prefix_cache()

    _, events, _ = msgspec.msgpack.decode(recorder.taken())
    assert [event["type"] for event in events] == ["BlockStored", "BlockStored", "AllBlocksCleared"]


def test_what_a_subscriber_has_missed_is_given_out_again(tmp_path, endpoint):
    replay = f"ipc://{tmp_path}/replay"
    batches = [encoded(AllBlocksCleared(), ts=float(number)) for number in range(6)]

    async def past(first):
        publisher = KVEventPublisher(endpoint, replay_endpoint=replay)
        publisher.publish(batches)
        with zmq.Context() as context, context.socket(zmq.DEALER) as asks:
            asks.connect(replay)
            asks.send_multipart([b"not", b"a request"])
            asks.send_multipart([b"", first.to_bytes(8, "big")])
            found = []
            while not found or found[-1][0] != -1:
                assert await asyncio.to_thread(asks.poll, 20_000)
                _, number, data = asks.recv_multipart()
                found.append((int.from_bytes(number, "big", signed=True), data))
        await publisher.close()
        return found

    (*found, end) = asyncio.run(past(4))
    assert found == [(number, batches[number]) for number in (4, 5)]
    assert end == (-1, b"")
    assert asyncio.run(past(6)) == [(-1, b"")]


def test_what_is_kept_for_those_that_missed_it_is_bounded(tmp_path, endpoint, monkeypatch):
    monkeypatch.setattr("pipezoo.serve.kv_events._MAX_KEPT_SIZE", 100)

    async def kept():
        publisher = KVEventPublisher(endpoint, replay_endpoint=f"ipc://{tmp_path}/replay")
        publisher.publish([encoded(AllBlocksCleared(), ts=float(number)) for number in range(50)])
        await publisher.close()
        return [msgspec.msgpack.decode(data)[0] for data in publisher._kept], sum(map(len, publisher._kept))

    numbers, size = asyncio.run(kept())
    assert numbers == list(range(int(numbers[0]), 50))
    assert 50 < size <= 100


def test_a_subscriber_that_does_not_read_misses_what_is_too_much(endpoint):
    slow = Subscriber(endpoint, hwm=1)
    publisher, batch = KVEventPublisher(endpoint), bytes(200_000)
    with closing(slow):
        number = connected(publisher, slow)
        for _ in range(2000):
            publisher.publish([batch])
        received = []
        while slow.socket.poll(1000):
            received.append(slow.receive()[1])
        asyncio.run(publisher.close())
    assert received == list(range(number, number + len(received)))
    assert 100 < len(received) < 300  # 256 at most, and what was on its way


def asking(context, replay):
    asks = context.socket(zmq.DEALER)
    asks.set_hwm(1)
    asks.connect(replay)
    asks.send_multipart([b"", bytes(8)])
    return asks


def test_others_go_on_while_past_batches_are_given_out_and_who_takes_none_is_given_up(tmp_path, endpoint, monkeypatch):
    monkeypatch.setattr("pipezoo.serve.kv_events._SECONDS_OF_SILENCE", 0.2)
    replay = f"ipc://{tmp_path}/replay"

    async def run():
        publisher, num_turns, found = KVEventPublisher(endpoint, replay_endpoint=replay), 0, []
        publisher.publish([bytes(10_000)] * 2000)
        with zmq.Context() as context, asking(context, replay):
            await asyncio.sleep(0.1)
            with asking(context, replay) as asks:
                while not found or found[-1] != -1:
                    num_turns += 1
                    await asyncio.sleep(0)
                    with suppress(zmq.Again):
                        found.append(int.from_bytes(asks.recv_multipart(zmq.NOBLOCK)[1], "big", signed=True))
            context.destroy(linger=0)
        await publisher.close()
        return num_turns, found

    num_turns, found = asyncio.run(asyncio.wait_for(run(), 60))
    assert found == [*range(2000), -1]
    assert num_turns > 2000


def test_what_an_engine_says_at_its_end_is_no_fault_of_a_closed_publisher(endpoint):
    publisher = KVEventPublisher(endpoint)
    asyncio.run(publisher.close())
    publisher.publish([all_cleared(0)])
    assert publisher._number == 0


@pytest.mark.parametrize(
    ("endpoint", "is_here"),
    [
        ("tcp://*:5557", True),
        ("tcp://localhost:5557", True),
        ("tcp://127.0.0.1:5557", True),
        ("tcp://0.0.0.0:5557", True),
        ("tcp://[::1]:5557", True),
        ("ipc:///run/events", True),
        ("tcp://router:5557", False),
        ("tcp://10.0.0.7:5557", False),
    ],
)
def test_an_address_of_this_machine_is_listened_at_and_another_one_connected_to(endpoint, is_here):
    assert _is_here(endpoint) == is_here


@pytest.mark.parametrize("host", ["*", "localhost", "127.0.0.1", "0.0.0.0", "[::1]"])
def test_a_subscriber_reaches_a_publisher_at_each_address_of_this_machine(host):
    is_new = host.startswith("[")
    try:
        with socket.create_server(
            ("::1" if is_new else "127.0.0.1", 0), family=socket.AF_INET6 if is_new else socket.AF_INET
        ) as free:
            port = free.getsockname()[1]
    except OSError:
        pytest.skip("this machine has no IPv6")
    publisher = KVEventPublisher(f"tcp://{host}:{port}")
    with closing(Subscriber(f"tcp://{host if is_new else '127.0.0.1'}:{port}")) as subscriber:
        connected(publisher, subscriber)
        asyncio.run(publisher.close())


@pytest.mark.parametrize("endpoint", ["tcp://*", "tcp://*:0", "tcp://*:65536", "udp://*:5557", "ipc://", "tcp://*:x"])
@pytest.mark.parametrize("name", ["kv_events_endpoint", "kv_events_replay_endpoint"])
def test_an_address_that_is_none_is_refused(name, endpoint):
    with pytest.raises(InvalidSettingError, match="an address for KV events is not valid"):
        ServeSettings(**{"kv_events_endpoint": "tcp://*:65535", name: endpoint})


@pytest.mark.parametrize("setting", [{"kv_events_topic": "kv"}, {"kv_events_replay_endpoint": "tcp://*:5558"}], ids=str)
def test_settings_of_events_that_are_not_published_are_refused(setting):
    with pytest.raises(InvalidSettingError, match="--kv-events-endpoint"):
        ServeSettings(**setting)
    assert ServeSettings(kv_events_endpoint="ipc://events", **setting)


def test_an_address_that_somebody_has_is_refused():
    with zmq.Context() as context, context.socket(zmq.PUB) as other:
        port = other.bind_to_random_port("tcp://127.0.0.1")
        with pytest.raises(InvalidSettingError, match=str(port)):
            KVEventPublisher(f"tcp://127.0.0.1:{port}")


@pytest.mark.slow
def test_a_server_says_that_it_begins_with_no_pages_and_then_which_ones_its_prompts_have(
    tiny_gguf, endpoint, subscriber
):
    server = RunningServer(tiny_gguf, kv_events_endpoint=endpoint, kv_events_topic="kv@tiny").wait()
    try:
        topic, number, first = subscriber.receive(60)
        assert (topic, number, msgspec.msgpack.decode(first)[1]) == (b"kv@tiny", 0, [{"type": "AllBlocksCleared"}])

        prompt = list(range(5, 29))
        assert server.client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 1}).status_code == 200
        [stored] = msgspec.msgpack.decode(subscriber.receive(60)[2])[1]
        assert (stored["type"], stored["token_ids"], stored["block_size"]) == ("BlockStored", prompt, 8)
    finally:
        server.close()
