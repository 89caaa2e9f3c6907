"""A pipeline on two ranks answers as one on a single rank, in everything that goes through it."""

import asyncio
import gc
import shutil

import psutil
import pytest
import torch
from conftest import assert_all_free
from gguf_files import TOKENS

from pipezoo import registry
from pipezoo.loading import parallel
from pipezoo_core.context import TextGenerationInputs
from pipezoo_core.distributed import Workers
from pipezoo_core.errors import (
    CorruptCheckpointError,
    InvalidSettingError,
    ModelNotFoundError,
    RankLostError,
    UnsupportedAttentionError,
)
from pipezoo_core.layers import linear_backends
from pipezoo_core.request import TextGenerationRequest
from pipezoo_core.sampling_params import SamplingParams

SETTINGS = {"dtype": "float32", "page_size": 8, "kv_cache_memory": "4MiB", "max_length": 200}
GREEDY = {"temperature": 0.0, "max_new_tokens": 16, "ignore_eos": True}
PROMPTS = ["hello", "he said that he", "h" * 100, "a quick brown fox jumps over the lazy dog, then"]

pytestmark = [pytest.mark.slow, pytest.mark.alone]


def texts(llm, prompts, **sampling):
    return [output.text for output in llm.generate(prompts, **{**GREEDY, **sampling})]


def test_greedy_text(both):
    alone, divided = both
    expected = texts(alone, PROMPTS)
    assert texts(divided, PROMPTS) == expected
    assert [texts(divided, prompt)[0] for prompt in PROMPTS] == expected
    assert "".join(divided.stream(PROMPTS[0], **GREEDY)) == expected[0]


def test_prefixes_are_shared(both):
    alone, divided = both
    prompt = "the same beginning, longer than a page or two, of both"
    first = texts(divided, prompt)
    hits = divided.kv_managers[0].metrics.prefix_hit_tokens
    assert texts(divided, prompt) == first == texts(alone, prompt)
    assert divided.kv_managers[0].metrics.prefix_hit_tokens >= hits + 48


def test_sampled_text_and_log_probabilities(both):
    sampling = {"temperature": 1.0, "seed": 7, "top_p": 0.9, "repetition_penalty": 1.2, "log_probabilities": 2}
    expected, found = (llm.generate(PROMPTS, **{**GREEDY, **sampling}) for llm in both)
    for one, other in zip(expected, found, strict=True):
        assert other.tokens == one.tokens
        logged, logged_alone = ([entry.token_log_probabilities for entry in o.log_probabilities] for o in (other, one))
        assert [pytest.approx(values, abs=1e-3) for values in logged_alone] == logged


def test_several_steps_at_once(both):
    def run(llm, num_steps):
        contexts = [
            llm.tokenizer.new_context(
                TextGenerationRequest(
                    prompt=prompt, sampling_params=SamplingParams(temperature=0.0, max_new_tokens=9, ignore_eos=True)
                )
            )
            for prompt in PROMPTS
        ]
        tokens = {context.request_id: [] for context in contexts}
        while batch := {c.request_id: c for c in contexts if not c.status.is_done}:
            for context in batch.values():
                context.set_chunk(context.num_pending)
            for request_id, output in llm.execute(TextGenerationInputs([batch], num_steps=num_steps)).items():
                tokens[request_id] += output.tokens
        for context in contexts:
            llm.release(context.request_id)
        return list(tokens.values())

    alone, divided = both
    assert run(divided, 4) == run(divided, 1) == run(alone, 1)


def test_tasks_share_steps(both):
    alone, divided = both

    async def one(prompt):
        pieces = divided.generate_async(prompt, **GREEDY)
        return "".join([output.text async for outputs in pieces for output in outputs])

    async def every():
        return await asyncio.gather(*map(one, PROMPTS))

    assert asyncio.run(every()) == texts(alone, PROMPTS)


def test_each_rank_has_its_part(both, monkeypatch):
    alone, divided = both
    assert [buffer.nbytes for buffer in divided.model.signal_buffers] == [2**20] * 2
    assert len(alone.model.signal_buffers) == 1
    assert len(divided.model.devices) == 2
    heads = [llm.kv_managers[0].params.groups[0].num_kv_heads for llm in both]
    assert heads[1] * 2 == heads[0]
    pages = [llm.kv_managers[0].total_num_pages for llm in both]
    assert pages[1] // 2 == pages[0]  # in as much memory on each
    assert divided.memory_plan.num_ranks == 2
    monkeypatch.setattr(linear_backends, "HUGE_PAGE", 1)
    exact = [llm.model.estimate_weights_size(llm.pipeline_config) for llm in both]
    assert 0.4 < exact[1] / exact[0] < 0.7
    assert "on each of 2 devices" in str(divided.memory_plan)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_other_precisions(tiny_gguf, dtype):
    """Rounded sums differ a little, and of halves that are narrower than a group not all are quantized."""
    settings = {**SETTINGS, "dtype": dtype}
    logged = []
    for devices in (["cpu"], ["cpu", "cpu"]):
        outputs = registry.load(tiny_gguf, devices=devices, **settings).generate(PROMPTS, **GREEDY, log_probabilities=1)
        assert [len(output.tokens) for output in outputs] == [16] * 4
        logged.append([output.log_probabilities[0].token_log_probabilities[0] for output in outputs])
    assert logged[0] == pytest.approx(logged[1], abs=0.1 if dtype == "bfloat16" else 0.5)


def test_threads_are_given_back_by_the_last_of_several_models(tiny_gguf, monkeypatch):
    monkeypatch.setattr(parallel, "_CORES", parallel._Cores())  # models of other tests share theirs
    before = torch.get_num_threads()
    many = 2 * parallel._num_cores()  # more than there are for each of two processes
    torch.set_num_threads(many)
    try:
        models = [registry.load(tiny_gguf, devices=["cpu", "cpu"], **SETTINGS) for _ in range(2)]
        while models:
            assert torch.get_num_threads() < many
            texts(models[0], PROMPTS[:1])
            del models[0]
            gc.collect()
        assert torch.get_num_threads() == many
    finally:
        torch.set_num_threads(before)


def test_gguf_and_four_ranks_of_which_three_cannot_be(tiny_gguf, tmp_path):
    alone = registry.load(tiny_gguf, device="cpu", **SETTINGS)
    others = psutil.Process().children()
    divided = registry.load(tiny_gguf, devices=["cpu"] * 4, **SETTINGS)  # 4 heads, 2 key/value heads
    assert len(TOKENS) % 4
    assert texts(divided, PROMPTS) == texts(alone, PROMPTS)
    children = [child for child in psutil.Process().children() if child not in others]
    assert len(children) == 3
    del divided
    gc.collect()
    assert not psutil.wait_procs(children, 30)[1]
    with pytest.raises(InvalidSettingError, match=r"4 heads with 2 key/value heads .*found: 3.*allowed: 1, 2, 4"):
        registry.load(tiny_gguf, devices=["cpu"] * 3, **SETTINGS)


def test_replicas_of_several_devices(tiny_gguf, tmp_path):
    alone = registry.load(tiny_gguf, device="cpu", **SETTINGS)
    others = psutil.Process().children()
    llm = registry.load(tiny_gguf, devices=["cpu"] * 4, data_parallel_degree=2, **SETTINGS)
    children = [child for child in psutil.Process().children() if child not in others]
    assert len(children) == 2
    assert (llm.memory_plan.num_replicas, llm.memory_plan.num_ranks) == (2, 2)
    prompts = PROMPTS + [prompt[::-1] for prompt in PROMPTS]
    assert texts(llm, prompts) == texts(alone, prompts)
    assert all(manager.metrics.prompt_tokens > 0 for manager in llm.kv_managers)
    of_first = llm.stream(PROMPTS[0], **GREEDY)
    text = next(of_first)
    max(children, key=lambda child: (child.create_time(), child.pid)).kill()  # of the second replica
    with pytest.raises(RankLostError):
        llm.generate("nothing of this is in a prefix cache", **GREEDY)
    assert text + "".join(of_first) == texts(alone, PROMPTS[:1])[0]
    assert_all_free(llm)
    del llm
    gc.collect()
    assert not psutil.wait_procs(children, 30)[1]


def test_what_goes_wrong_at_load_is_raised_and_ends_the_processes(tiny_folder, tmp_path):
    folder, before = shutil.copytree(tiny_folder, tmp_path / "model"), psutil.Process().children()
    with pytest.raises(InvalidSettingError, match="unknown setting 'max_lenght'"):
        registry.load(folder, devices=["cpu", "cpu"], max_lenght=3)
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        registry.load(folder, devices=["cpu", "cpu"], lora_paths=["nowhere"], max_num_loras=1, max_lora_rank=4)
    with pytest.raises(UnsupportedAttentionError):
        registry.load(folder, devices=["cpu", "cpu"], **{**SETTINGS, "attention": "native", "page_size": 7})
    with pytest.raises(InvalidSettingError, match="no such device"):
        registry.load(folder, devices=["cuda:77", "cuda:78"], **SETTINGS)
    with pytest.raises(InvalidSettingError, match="different kinds"):
        registry.load(folder, devices=["cpu", "cuda:0"], **SETTINGS)
    with pytest.raises(InvalidSettingError, match="Give either `device` or `devices`"):
        registry.load(folder, device="cpu", devices=["cpu", "cpu"], **SETTINGS)
    with pytest.raises(InvalidSettingError, match="cannot be divided among the replicas"):
        registry.load(folder, devices=["cpu"] * 3, data_parallel_degree=2, **SETTINGS)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CorruptCheckpointError):
        registry.load(folder, devices=["cpu", "cpu"], **SETTINGS)
    assert psutil.Process().children() == before  # nobody is left, alive or not waited for


def test_an_error_of_another_rank_reaches_the_caller(tiny_folder, tmp_path, monkeypatch):
    """The files are whole for rank 0 and damaged for the other."""
    damaged = shutil.copytree(tiny_folder, tmp_path / "damaged")
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    tell = Workers.tell
    monkeypatch.setattr(Workers, "tell", lambda self, call: tell(self, {**call, "path": str(damaged)}))
    with pytest.raises(CorruptCheckpointError, match="not a whole safetensors file") as raised:
        registry.load(tiny_folder, devices=["cpu", "cpu"], **SETTINGS)
    assert raised.value.cure == "Download the file again."
    assert raised.value.__notes__ == ["It happened in the process of rank 1."]
