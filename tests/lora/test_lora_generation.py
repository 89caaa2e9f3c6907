"""Requests with adapters through the pipeline: greedy tokens against peft's merged model, however they are run."""

import contextlib
import re
import shutil

import psutil
import pytest
import torch
from conftest import assert_all_free
from lora.peft_adapters import merged, save_adapter
from tiny_models import cache_memory
from typer.testing import CliRunner

from pipezoo import registry
from pipezoo.cli.main import app
from pipezoo_core.config import PipelineConfig
from pipezoo_core.context import TextGenerationInputs
from pipezoo_core.errors import (
    AdapterInUseError,
    AdapterNotFoundError,
    AdapterSlotsError,
    InsufficientMemoryError,
    InvalidSettingError,
    RankLostError,
)
from pipezoo_core.interfaces import PipelineModel
from pipezoo_core.request import GenerationStatus, TextGenerationRequest
from pipezoo_core.sampling_params import SamplingParams

pytestmark = pytest.mark.slow

NAMES = ["a", "b", "c"]
PROMPTS = [[(7 * i + 3 * j) % 250 for j in range(length)] for i, length in enumerate((3, 17, 30, 8, 41, 9, 1, 25))]
LORAS = ["a", None, "b", "c", "a", None, "b", "a"]
NUM_NEW = 12
GREEDY = {"max_new_tokens": NUM_NEW, "temperature": 0.0, "ignore_eos": True}


@pytest.fixture(scope="module")
def adapters(tiny_reference, tmp_path_factory):
    """Adapters of different ranks, of all linear layers and of some."""
    folders = {name: tmp_path_factory.mktemp(name) for name in NAMES}
    save_adapter(tiny_reference, folders["a"], r=4)
    save_adapter(tiny_reference, folders["b"], r=2, seed=1, lora_alpha=8, target_modules=["q_proj", "up_proj"])
    save_adapter(tiny_reference, folders["c"], r=6, seed=2, use_rslora=True, target_modules=["o_proj", "k_proj"])
    return folders


@pytest.fixture(scope="module")
def expected(tiny_reference, adapters):
    """Returns a function to the greedy tokens of a prompt with an adapter, by transformers."""
    references = {None: tiny_reference, **{name: merged(tiny_reference, adapters[name]) for name in NAMES}}
    known = {}

    def tokens(prompt, lora, num_tokens=NUM_NEW):
        key = (tuple(prompt), lora, num_tokens)
        if key not in known:
            ids = torch.tensor([prompt])
            output = references[lora].generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=num_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
            known[key] = output[0, len(prompt) :].tolist()
        return known[key]

    return tokens


@pytest.fixture
def load(load_tiny, adapters):
    def load(names=NAMES, **settings):
        return load_tiny(lora_paths=[f"{name}={adapters[name]}" for name in names], **settings)

    return load


def requests(prompts=PROMPTS, loras=LORAS):
    return [TextGenerationRequest(prompt=prompt, lora=lora) for prompt, lora in zip(prompts, loras, strict=True)]


def check(llm, expected, prompts=PROMPTS, loras=LORAS):
    outputs = llm.generate(requests(prompts, loras), **GREEDY)
    assert [output.tokens for output in outputs] == [expected(*pair) for pair in zip(prompts, loras, strict=True)]


def test_adapters_change_the_answers(expected):
    """Without it the oracle could not fail."""
    for prompt in PROMPTS:
        assert len({tuple(expected(prompt, lora)) for lora in (None, *NAMES)}) > 2


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_batch_tokens": 16},
        {"enable_prefix_caching": False},
        {"enforce_eager": True},
        {"linear": "torch", "attention": "reference"},
        {"max_num_loras": 2},
        {"max_num_loras": 1, "max_lora_rank": 16},
        {"max_num_loras": 1, "max_batch_tokens": 16},
        {"max_batch_size": 3},
    ],
    ids=str,
)
def test_a_mixed_batch(load, expected, settings):
    llm = load(**settings)
    check(llm, expected)
    check(llm, expected)  # adapters are in their slots, prompts in the prefix cache
    assert llm.model.lora_manager._users == {}


def test_on_two_devices(load, expected, adapters):
    llm = load(["a", "b"], device="auto", devices=["cpu", "cpu"], max_num_loras=1, max_lora_rank=6)
    check(llm, expected, PROMPTS[:3], LORAS[:3])
    llm.model.lora_manager.load_adapter(f"c={adapters['c']}")
    check(llm, expected)


def test_a_device_that_is_gone_when_an_adapter_is_wanted(load):
    before = psutil.Process().children()
    llm = load(device="auto", devices=["cpu", "cpu"], max_num_loras=1)
    for child in {*psutil.Process().children()} - {*before}:
        child.kill()
        child.wait()
    for lora in ("a", "b", None):
        with pytest.raises(RankLostError, match="load the model again"):
            llm.generate("hello", lora=lora, **GREEDY)


def test_replicas_of_several_devices_of_which_one_is_gone(load, expected):
    before = psutil.Process().children()
    llm = load(device="auto", devices=["cpu"] * 4, data_parallel_degree=2, max_num_loras=1)
    check(llm, expected)
    children = {*psutil.Process().children()} - {*before}
    of_first = llm.stream(TextGenerationRequest(prompt=PROMPTS[3]), lora="a", **GREEDY)
    text = next(of_first)
    last = max(children, key=lambda child: (child.create_time(), child.pid))  # of the second replica
    last.kill()
    last.wait()
    with pytest.raises(RankLostError, match="load the model again"):
        llm.generate("hello", lora="b", **GREEDY)
    assert text + "".join(of_first) == llm.tokenizer.decode(expected(PROMPTS[3], "a"))


def test_after_preemption(load, expected):
    llm = load(kv_cache_memory=cache_memory(9), max_length=60)
    check(llm, expected)
    assert llm.scheduler.num_preemptions > 0


def test_steps_with_and_without_adapters_in_turn(load, expected):
    """Steps without adapters may be recorded and replayed; those between them are not."""
    llm = load()
    for lora in (None, "a", None, "b", "a", None):
        check(llm, expected, PROMPTS[:2], [lora, lora])


@pytest.mark.parametrize("num_steps", [2, 5, 100])
def test_several_steps_at_once(load, expected, num_steps):
    llm = load()
    settings = [{**GREEDY, "max_new_tokens": 3 + i} for i in range(len(PROMPTS))]  # requests end one by one
    contexts = [
        llm.tokenizer.new_context(
            TextGenerationRequest(prompt=prompt, lora=lora, sampling_params=SamplingParams(**sampling))
        )
        for prompt, lora, sampling in zip(PROMPTS, LORAS, settings, strict=True)
    ]
    while batch := {context.request_id: context for context in contexts if not context.status.is_done}:
        for context in batch.values():
            context.set_chunk(context.num_pending)
        llm.execute(TextGenerationInputs([batch], num_steps=num_steps))
    for i, context in enumerate(contexts):
        assert context.generated_tokens == expected(PROMPTS[i], LORAS[i], 3 + i)
        llm.release(context.request_id)


def test_the_prefix_cache_never_crosses_adapters(load, expected):
    llm = load()
    prompt = PROMPTS[4]
    for lora in (None, *NAMES):
        check(llm, expected, [prompt], [lora])
        assert llm.kv_managers[0].metrics.prefix_hit_tokens == 0
    for number, lora in enumerate((*NAMES, None), start=1):
        check(llm, expected, [prompt], [lora])
        assert llm.kv_managers[0].metrics.prefix_hit_tokens == number * 40


def test_a_name_that_is_loaded_again_is_another_adapter(load, adapters, expected):
    llm = load(["a"], max_lora_rank=6)
    manager = llm.model.lora_manager
    check(llm, expected, PROMPTS[4:5], ["a"])
    manager.unload_adapter("a")
    manager.load_adapter(f"a={adapters['c']}")
    tokens = llm.generate(requests(PROMPTS[4:5], ["a"]), **GREEDY)[0].tokens
    assert tokens == expected(PROMPTS[4], "c")
    assert llm.kv_managers[0].metrics.prefix_hit_tokens == 0


def test_an_adapter_is_what_it_was_when_it_was_loaded(load_tiny, adapters, expected, tmp_path):
    """Its files may be written anew, or go, before its first request and while it has no slot."""
    files = {name: (adapters[name] / "adapter_model.safetensors").read_bytes() for name in NAMES}
    folder = shutil.copytree(adapters["a"], tmp_path / "a")
    llm = load_tiny(lora_paths=[f"a={folder}", f"c={adapters['c']}"], max_num_loras=1)
    (folder / "adapter_model.safetensors").write_bytes(files["b"])
    check(llm, expected, PROMPTS[:1], ["a"])
    check(llm, expected, PROMPTS[:1], ["c"])
    shutil.rmtree(folder)
    check(llm, expected, PROMPTS[:1], ["a"])


def test_an_adapter_in_use_is_neither_evicted_nor_unloaded(load, expected):
    """Of two slots, a running request holds one, and two adapters take turns in the other."""
    llm = load(max_num_loras=2)
    manager = llm.model.lora_manager
    running = llm.stream(TextGenerationRequest(prompt=PROMPTS[0]), lora="a", **{**GREEDY, "max_new_tokens": 100})
    with contextlib.closing(running):
        next(running)
        for lora in ("b", "c", "b"):
            check(llm, expected, PROMPTS[:1], [lora])
            assert [name for name in NAMES if manager.is_active_lora(name)] == ["a", lora]
        with pytest.raises(AdapterInUseError, match="'a'"):
            manager.unload_adapter("a")
        manager.unload_adapter("b")
    manager.unload_adapter("a")
    assert manager.loras == ["c"]
    assert not any(manager.is_active_lora(name) for name in NAMES)
    with pytest.raises(AdapterNotFoundError, match=r"'a' is loaded .allowed: c"):
        manager.unload_adapter("a")


def test_a_request_waits_for_a_slot(load, expected):
    llm = load(max_num_loras=1)
    first = llm.stream(TextGenerationRequest(prompt=PROMPTS[0]), lora="a", **GREEDY)
    with contextlib.closing(first):
        next(first)
        check(llm, expected, PROMPTS[1:3], ["b", None])  # runs the first request's steps, too, until it is done
    assert llm.model.lora_manager.is_active_lora("b")


def test_an_unknown_adapter_fails_its_own_request(load, expected):
    llm = load()
    running = llm.stream(TextGenerationRequest(prompt=PROMPTS[0]), lora="a", **GREEDY)
    with contextlib.closing(running):
        text = next(running)
        answered, failed = llm.generate(requests(PROMPTS[:2], ["b", "nobody"]), **GREEDY)
        assert isinstance(failed.error, AdapterNotFoundError)
        assert "'nobody' is loaded (allowed: a, b, c)" in str(failed.error)
        assert answered.error is None
        text += "".join(running)
    assert text == llm.generate(requests(PROMPTS[:1], ["a"]), **GREEDY)[0].text
    assert_all_free(llm)
    llm.model.lora_manager.unload_adapter("b")


def test_a_model_without_adapters(load_tiny):
    llm = load_tiny()
    assert llm.model.lora_manager is None
    assert llm.memory_plan.lora == 0
    assert "adapters" not in str(llm.memory_plan)
    with pytest.raises(AdapterNotFoundError, match=r"without room for any .allowed: none"):
        llm.generate("hello", lora="a")
    context = llm.tokenizer.new_context(TextGenerationRequest(prompt="hello", lora="a"))
    with pytest.raises(AdapterNotFoundError):
        llm.execute(TextGenerationInputs([{context.request_id: context}]))


def test_more_adapters_than_slots_in_one_batch(load):
    llm = load(max_num_loras=2)
    contexts = [llm.tokenizer.new_context(request) for request in requests(PROMPTS[:3], NAMES)]
    batch = {context.request_id: context for context in contexts}
    with pytest.raises(AdapterSlotsError, match=r"'c' finds no slot.*2 slots"):
        llm.execute(TextGenerationInputs([batch]))
    for request_id in batch:
        llm.release(request_id)
    llm.execute(TextGenerationInputs([dict(list(batch.items())[1:])]))
    for request_id in batch:
        llm.release(request_id)


def test_every_way_to_ask(load, expected):
    """By keyword, and a keyword over what the request says."""
    llm = load()
    text = llm.generate("hello", lora="a", **GREEDY)[0].text
    assert text == "".join(llm.stream("hello", lora="a", **GREEDY)) != llm.generate("hello", **GREEDY)[0].text
    assert text == llm.generate(TextGenerationRequest(prompt="hello", lora="b"), lora="a", **GREEDY)[0].text
    chat = [{"role": "user", "content": "hello"}]
    answer = llm.chat(chat, lora="a", **GREEDY)
    assert answer.final_status is GenerationStatus.MAXIMUM_LENGTH
    assert answer.tokens != llm.chat(chat, **GREEDY).tokens


def test_the_memory_plan_counts_the_slots(load, load_tiny):
    """And the adapters that were loaded, which stay in host memory, each as if it were of the greatest rank."""
    llm = load(max_num_loras=5, max_lora_rank=8)
    manager = llm.model.lora_manager
    tensors = [t for layer in set(manager._module._layers.values()) for t in (layer.a, layer.b)]
    of_all_layers = manager._adapters["a"]
    loaded = sum(t.nbytes for pair in of_all_layers.layers.values() for t in pair) // of_all_layers.rank * 8
    merged_parts = {"qkv": 3, "gate_up": 2, "other": 1}
    assert llm.memory_plan.lora == sum(t.nbytes for t in tensors) + len(manager.loras) * loaded
    assert "adapters" in str(llm.memory_plan)
    assert {len(t) for t in tensors} == {5}
    assert {t.shape[1] for t in tensors} == {8 * num_parts for num_parts in merged_parts.values()}
    with pytest.raises(InsufficientMemoryError, match="adapters"):
        load_tiny(max_num_loras=10**6, max_lora_rank=10**4)


def test_settings(load_tiny, adapters, tiny_gguf):
    llm = load_tiny(max_num_loras=2)
    expected = {"lora_paths": (), "max_num_loras": 2, "max_lora_rank": 16, "lora_experts": False}
    assert llm.pipeline_config.lora.model_dump() == expected
    plan = registry.plan(tiny_gguf, lora_paths=adapters["c"])
    assert plan.pipeline_config.lora.model_dump() == {
        "lora_paths": (str(adapters["c"]),), "max_num_loras": 1, "max_lora_rank": 6, "lora_experts": False
    }  # fmt: skip


def test_on_the_command_line(tiny_folder, adapters, expected):
    def answer(*arguments, **options):
        small = ["--dtype", "float32", "--device", "cpu", "--kv-cache-memory", "4MiB", "--temperature", "0"]
        command = [*arguments, *small, "--max-new-tokens", str(NUM_NEW)]
        result = CliRunner().invoke(app, [str(argument) for argument in command], **options)
        return result.stdout if result.exit_code == 0 else result.stderr

    without = answer("generate", tiny_folder, "hello")
    answers = [answer("generate", tiny_folder, "hello", "--lora", adapters[name]) for name in NAMES]
    assert len({without, *answers}) == 4
    llm = registry.load(
        tiny_folder, dtype="float32", device="cpu", kv_cache_memory="4MiB", lora_paths=f"a={adapters['a']}"
    )
    assert answers[0] == llm.generate("hello", lora="a", max_new_tokens=NUM_NEW, temperature=0.0)[0].text + "\n"
    chat = [{"role": "user", "content": "hello"}]
    text = llm.chat(chat, lora="a", max_new_tokens=NUM_NEW, temperature=0.0).text
    assert text in answer("chat", tiny_folder, "--lora", adapters["a"], input="hello\n/exit\n")
    assert "neither a folder nor a name on the Hub" in answer("generate", tiny_folder, "hello", "--lora", "./nowhere")
    command = ["info", str(tiny_folder), "--kv-cache-memory", "4MiB", "--lora", str(adapters["a"])]
    assert re.search(r"max_lora_rank=4\b", CliRunner().invoke(app, command, terminal_width=200).stdout)


def test_a_model_that_takes_no_adapters_says_so():
    with pytest.raises(InvalidSettingError, match="PipelineModel takes no LoRA adapters"):
        PipelineModel.estimate_lora_memory(PipelineConfig(model_path="x"), None)
