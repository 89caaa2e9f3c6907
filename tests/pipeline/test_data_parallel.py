"""Several replicas behind one pipeline: the answers of one, spread by prefix and load, each replica on its own."""

import threading
from itertools import islice

import pytest
from lora.peft_adapters import save_adapter
from tiny_models import cache_memory

from pipezoo import registry
from pipezoo_core import memory
from pipezoo_core.context import TextGenerationInputs
from pipezoo_core.errors import (
    AdapterNotFoundError,
    InsufficientMemoryError,
    InvalidRequestError,
    InvalidSettingError,
    NonFiniteLogitsError,
)
from pipezoo_core.request import TextGenerationRequest
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_core.scheduling import get_or_recommend_replica

pytestmark = pytest.mark.slow

PROMPTS = [[(7 * i + 3 * j) % 250 for j in range(length)] for i, length in enumerate((3, 17, 30, 8, 41, 9, 1, 25, 50))]
GREEDY = {"temperature": 0.0, "max_new_tokens": 12, "ignore_eos": True}
MIXED = [
    GREEDY,
    {"temperature": 1.0, "seed": 1, "max_new_tokens": 20},
    {"temperature": 0.7, "seed": 2, "top_p": 0.9, "max_new_tokens": 9, "log_probabilities": 2},
    {**GREEDY, "log_probabilities": 3, "echo": True},
    {**GREEDY, "repetition_penalty": 1.3},
    {"temperature": 1.0, "seed": 3, "max_new_tokens": 30, "regex": "[a-c]{2,5}"},
]


def requests_of(prompts, settings, loras=(None,)):
    return [
        TextGenerationRequest(
            prompt=prompt, sampling_params=SamplingParams(**settings[i % len(settings)]), lora=loras[i % len(loras)]
        )
        for i, prompt in enumerate(prompts)
    ]


def tokens_of(llm, prompts, **settings):
    return [output.tokens for output in llm.generate(requests_of(prompts, [settings]))]


def rounded(log_probabilities):
    return log_probabilities and [[round(v, 4) for v in entry.token_log_probabilities] for entry in log_probabilities]


def content(output):
    return output.tokens, output.text, output.final_status, rounded(output.log_probabilities)


@pytest.mark.parametrize("degree", [2, 3])
def test_the_answers_of_one_replica(load_tiny, of_each_plugin, degree):
    folder = of_each_plugin[1]
    expected = [content(output) for output in load_tiny(folder).generate(requests_of(PROMPTS, MIXED))]
    llm = load_tiny(folder, data_parallel_degree=degree)
    assert [content(output) for output in llm.generate(requests_of(PROMPTS, MIXED))] == expected
    assert len(llm.kv_managers) == len(llm.models) == degree
    assert all(manager.metrics.prompt_tokens > 0 for manager in llm.kv_managers)
    assert len({id(tensor) for model in llm.models for tensor in model.module.parameters()}) == degree * len(
        list(llm.model.module.parameters())
    )


@pytest.mark.parametrize("settings", [{"max_batch_size": 1}, {"max_batch_tokens": 5}, {"num_pages": 8}])
def test_however_little_room_there_is(load_tiny, greedy, settings):
    """One request at a time in each, prompts in small chunks, and pages for hardly more than one request."""
    if "num_pages" in settings:
        settings = {"kv_cache_memory": cache_memory(settings["num_pages"]), "max_length": 64}
    llm = load_tiny(data_parallel_degree=2, **settings)
    assert tokens_of(llm, PROMPTS, **GREEDY) == [greedy(prompt, 12) for prompt in PROMPTS]
    assert (llm.scheduler.num_preemptions > 0) == ("kv_cache_memory" in settings)


def test_a_prompt_goes_where_its_prefix_is(load_tiny):
    llm = load_tiny(data_parallel_degree=3)
    prompts = [[i] * 33 for i in range(9)]
    tokens_of(llm, prompts, **GREEDY)
    assert [manager.metrics.prompt_tokens for manager in llm.kv_managers] == [99] * 3
    tokens_of(llm, prompts[::-1], **GREEDY)
    assert [manager.metrics.prefix_hit_tokens for manager in llm.kv_managers] == [3 * 32] * 3
    for manager in llm.kv_managers:
        manager.reset_prefix_cache()
    tokens_of(llm, prompts, **GREEDY)
    assert [manager.metrics.prefix_hit_tokens for manager in llm.kv_managers] == [3 * 32] * 3


def test_requests_that_all_begin_alike_are_spread(load_tiny, greedy):
    """A common beginning is computed once per replica, not all in the one that had it first."""
    llm = load_tiny(data_parallel_degree=2)
    common = [5] * 24
    tokens_of(llm, [[*common, 1]], **GREEDY)
    prompts = [[*common, i, i] for i in range(20)]
    assert tokens_of(llm, prompts, **GREEDY) == [greedy(prompt, 12) for prompt in prompts]
    served = [manager.metrics.prompt_tokens for manager in llm.kv_managers]
    assert min(served) >= 8 * 26
    assert sum(manager.metrics.prefix_hit_tokens for manager in llm.kv_managers) == (20 - 1) * 24


def test_replicas_compute_at_the_same_time(load_tiny):
    """Each waits for the other in the middle of a step."""
    llm = load_tiny(data_parallel_degree=2)
    barrier = threading.Barrier(2)
    for model in llm.models:
        model.execute = lambda inputs, execute=model.execute: (barrier.wait(60), execute(inputs))[1]
    assert len(tokens_of(llm, PROMPTS[:2], **GREEDY)) == 2


def test_one_replica_needs_no_thread(load_tiny):
    before = set(threading.enumerate())
    llm = load_tiny()
    tokens_of(llm, PROMPTS, **GREEDY)
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("failing", [0, 1])
def test_a_replica_that_fails_ends_its_own_requests(load_tiny, greedy, error, failing):
    llm = load_tiny(data_parallel_degree=2)
    requests = requests_of(PROMPTS[:4], [{**GREEDY, "max_new_tokens": 50}])
    streams = [llm.stream(request) for request in requests]  # 0 and 2 in the first replica, 1 and 3 in the second
    begun = [next(stream) for stream in streams]
    execute = llm.models[failing].execute

    def fail(inputs):
        llm.models[failing].execute = execute
        raise error("out of luck")

    llm.models[failing].execute = fail
    for number, stream in enumerate(streams):
        if number % 2 == failing or (number == 0 and error is KeyboardInterrupt):  # that is raised at once
            with pytest.raises(error, match="out of luck"):
                list(stream)
        else:
            assert begun[number] + "".join(stream) == llm.tokenizer.decode(greedy(PROMPTS[number], 50))
    assert tokens_of(llm, PROMPTS, **GREEDY) == [greedy(prompt, 12) for prompt in PROMPTS]


def test_spoiled_logits_end_one_request(load_tiny, greedy):
    llm = load_tiny(data_parallel_degree=2)
    llm.models[1].module.model.embed_tokens.weight.data[100] = float("nan")
    good = llm.stream(TextGenerationRequest(prompt=PROMPTS[2]), **GREEDY)
    text = next(good)
    with pytest.raises(NonFiniteLogitsError):
        llm.generate(TextGenerationRequest(prompt=[100] * 9), **GREEDY)  # to the second: the first has one
    assert text + "".join(good) == llm.tokenizer.decode(greedy(PROMPTS[2], 12))


def test_cancelled_and_closed_requests_give_back_their_pages(load_tiny):
    llm = load_tiny(data_parallel_degree=2)
    requests = requests_of(PROMPTS[:4], [{**GREEDY, "max_new_tokens": 150}])
    streams = [llm.stream(request) for request in requests]
    for stream in streams:
        next(stream)
    assert [len(replica.running) for replica in llm.scheduler._replicas] == [2, 2]
    for request in requests[:2]:
        llm.cancel(request.request_id)
    for stream in streams[:2]:
        list(stream)
    for stream in streams[2:]:
        stream.close()


def test_streams_that_the_collector_closes_in_a_thread_that_the_step_waits_for(load_tiny, greedy):
    llm = load_tiny(data_parallel_degree=2)
    abandoned = [llm.stream(request) for request in requests_of(PROMPTS[:2], [{**GREEDY, "max_new_tokens": 150}])]
    for stream in abandoned:
        next(stream)
    del stream
    execute = llm.models[1].execute

    def collecting(inputs):
        assert threading.current_thread() is not threading.main_thread()
        abandoned.clear()
        return execute(inputs)

    llm.models[1].execute = collecting
    assert tokens_of(llm, PROMPTS[2:6], **GREEDY) == [greedy(prompt, 12) for prompt in PROMPTS[2:6]]
    assert not abandoned
    assert all(manager.num_free_pages == manager.total_num_pages for manager in llm.kv_managers)


@pytest.mark.parametrize("split", [[2, 2], [0, 4], [4], [1, 3]])
def test_execute_takes_a_batch_per_replica(load_tiny, greedy, split):
    llm = load_tiny(data_parallel_degree=2)
    contexts = [llm.tokenizer.new_context(request) for request in requests_of(PROMPTS[:4], [GREEDY])]
    waiting = iter(contexts)
    batches = [{c.request_id: c for c in islice(waiting, size)} for size in split]
    outputs = llm.execute(TextGenerationInputs(batches, num_steps=12))
    for context, prompt in zip(contexts, PROMPTS, strict=False):
        assert outputs[context.request_id].tokens == greedy(prompt, 12)
        replica = next(number for number, batch in enumerate(batches) if context.request_id in batch)
        assert get_or_recommend_replica(llm.kv_managers, context) == replica
        llm.release(context.request_id)


def test_more_batches_than_replicas_are_refused(load_tiny):
    llm = load_tiny(data_parallel_degree=2)
    with pytest.raises(InvalidRequestError, match="found: 3; allowed: 2"):
        llm.execute(TextGenerationInputs([{}, {}, {}]))


@pytest.fixture(scope="module")
def adapters(tiny_reference, tmp_path_factory):
    folders = {name: tmp_path_factory.mktemp(name) for name in "ab"}
    for seed, folder in enumerate(folders.values()):
        save_adapter(tiny_reference, folder, seed=seed)
    return folders


LORAS = ["a", None, "b", "b", "a"]


@pytest.mark.parametrize("max_num_loras", [1, 2])
def test_adapters_in_every_replica(load_tiny, tiny_folder, adapters, max_num_loras):
    settings = {
        "lora_paths": [f"{name}={folder}" for name, folder in adapters.items()],
        "max_num_loras": max_num_loras,
    }
    requests = requests_of([*PROMPTS, *PROMPTS], [GREEDY], LORAS)
    expected = [output.tokens for output in load_tiny(tiny_folder, **settings).generate(requests)]
    llm = load_tiny(tiny_folder, data_parallel_degree=2, **settings)
    assert [output.tokens for output in llm.generate(requests)] == expected
    assert all(manager.metrics.prompt_tokens > 0 for manager in llm.kv_managers)
    for model in llm.models:
        for name in adapters:
            model.lora_manager.unload_adapter(name)
    errors = [type(output.error) for output in llm.generate(requests)]
    assert errors == [AdapterNotFoundError if lora else type(None) for lora in (request.lora for request in requests)]


def test_an_adapter_that_one_replica_lacks(load_tiny, tiny_folder, adapters):
    llm = load_tiny(tiny_folder, data_parallel_degree=2, max_num_loras=1)
    llm.model.lora_manager.load_adapter(f"a={adapters['a']}")
    with pytest.raises(AdapterNotFoundError):
        llm.generate("hello", lora="a", **GREEDY)
    llm.model.lora_manager.unload_adapter("a")  # nobody holds it


def test_the_plan_counts_all_replicas(tiny_folder, monkeypatch):
    def plan(**settings):
        return registry.plan(tiny_folder, device="cpu", dtype="float32", page_size=8, **settings).memory

    monkeypatch.setattr(memory, "memory_left", lambda: 400 * 2**20)
    one = plan()
    two = plan(data_parallel_degree=2)
    assert (one.available, two.available) == (400 * 2**20, 200 * 2**20)
    assert (two.weights, two.activations) == (one.weights, one.activations)
    assert "2 replicas of: weights" in str(two)
    fits = int(one.available * 0.9) - one.weights - one.activations
    plan(kv_cache_memory=fits)
    with pytest.raises(InsufficientMemoryError, match="data_parallel_degree"):
        plan(kv_cache_memory=fits // 2, data_parallel_degree=2)
    half = int(two.available * 0.9) - one.weights - one.activations
    plan(kv_cache_memory=half, data_parallel_degree=2)


@pytest.mark.parametrize("degree", [0, -1, "two", 1.5])
def test_bad_degrees_are_refused(degree, tiny_folder):
    with pytest.raises(InvalidSettingError, match="data_parallel_degree"):
        registry.plan(tiny_folder, data_parallel_degree=degree)
    with pytest.raises(InvalidSettingError, match="data_parallel_degree"):
        registry.load(tiny_folder, data_parallel_degree=degree)


def test_as_many_devices_as_replicas(tiny_folder):
    """Each has a replica, in this process; another number of devices than that cannot be divided."""
    settings = {"dtype": "float32", "kv_cache_memory": "1MiB", "page_size": 8}
    one = registry.load(tiny_folder, device="cpu", **settings)
    two = registry.load(tiny_folder, devices=["cpu", "cpu"], data_parallel_degree=2, **settings)
    assert [model.session.device.type for model in two.models] == ["cpu", "cpu"]
    prompts, sampling = ["hello", "he", "hehe"], {"max_new_tokens": 6, "temperature": 0.0, "ignore_eos": True}
    found, expected = ([output.tokens for output in llm.generate(prompts, **sampling)] for llm in (two, one))
    assert found == expected
    with pytest.raises(InvalidSettingError, match="2 replicas on 3 devices"):
        registry.plan(tiny_folder, devices=["cpu"] * 3, data_parallel_degree=2, **settings)
