"""The fallback as the registry loads it: last of all plugins, before any download, on one device."""

import json
import shutil

import pytest
from conftest import assert_all_free
from fallback.served import greedy, make_reference
from gguf_files import TOKENS
from kernels_here import needs_kernels

from pipezoo import registry
from pipezoo_core.errors import InvalidSettingError, PluginNotFoundError, UnsupportedModelError
from pipezoo_core.request import TextGenerationRequest
from pipezoo_core.testing.checked_distribution import check_distribution
from pipezoo_transformers import layers
from pipezoo_transformers.config import _layers
from pipezoo_transformers.weight_adapter import _names

SETTINGS = {"dtype": "float32", "device": "cpu", "page_size": 8, "kv_cache_memory": "4MiB"}
FALLBACK = "pipezoo-transformers"
HEADS = {name: {"head_dim": 32} for name in ("llama", "qwen3")}


def save(reference, folder, tiny_folder):
    reference.save_pretrained(folder)
    for path in tiny_folder.glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def reference():
    return make_reference("glm4", vocab_size=len(TOKENS))


@pytest.fixture(scope="module")
def folder(reference, tiny_folder, tmp_path_factory):
    return save(reference, tmp_path_factory.mktemp("glm4"), tiny_folder)


def only_config(folder, **entries):
    (folder / "config.json").write_text(json.dumps(entries))
    return folder


def test_it_is_chosen_last(folder, tiny_folder):
    resolution = registry.resolve(folder)
    assert resolution.plugin.distribution == FALLBACK
    assert "no other plugin serves model_type 'glm4'" in str(resolution)
    other = registry.resolve(tiny_folder)
    assert other.plugin.distribution == "pipezoo-llama"
    assert "serves what no other plugin does, but 'pipezoo-llama' is taken" in str(other)


def test_it_can_be_asked_for(tiny_folder):
    assert registry.resolve(tiny_folder, plugin=FALLBACK).architecture.name == "TransformersForCausalLM"


def test_after_preemption(folder, reference):
    prompts = [[(step * i) % 250 for i in range(length)] for step, length in ((3, 30), (7, 47), (11, 25), (13, 40))]
    llm = registry.load(folder, **{**SETTINGS, "kv_cache_memory": 20 * 8 * 2 * 2 * 2 * 16 * 4, "max_length": 120})
    assert llm.kv_managers[0].total_num_pages == 20
    outputs = llm.generate(
        [TextGenerationRequest(prompt=prompt) for prompt in prompts],
        max_new_tokens=24,
        temperature=0.0,
        ignore_eos=True,
    )
    assert llm.scheduler.num_preemptions > 0
    assert [output.tokens for output in outputs] == [greedy(reference, prompt, 24) for prompt in prompts]
    assert_all_free(llm)


def test_layers_may_be_wider_together_than_any_tensor(tmp_path):
    """Gate and up are one product, of which a checkpoint has two halves."""
    make_reference("llama", intermediate_size=192).save_pretrained(tmp_path)
    plan = registry.plan(tmp_path, plugin=FALLBACK, **SETTINGS)
    config = plan.architecture.pipeline_model.config_class.from_huggingface(plan.files.huggingface_config)
    assert config.intermediate_size == 384 > max(max(tensor.shape) for tensor in plan.files.weights.values())


@needs_kernels
@pytest.mark.matrix
@pytest.mark.parametrize("model_type", ["llama", "qwen3", "olmo2", "phi3", "starcoder2"])
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_step_is_kernels_alone(model_type, dtype, tiny_folder, tmp_path):
    """Nothing is left to torch, in what is foretold and in what is run."""
    reference = make_reference(model_type, vocab_size=len(TOKENS), hidden_size=128, **HEADS.get(model_type, {}))
    settings = {**SETTINGS, "dtype": dtype, "page_size": 32}
    plan = registry.plan(save(reference, tmp_path, tiny_folder), plugin=FALLBACK, **settings)
    told = plan.architecture.pipeline_model.step_outlook(plan.pipeline_config, plan.files.huggingface_config)
    assert (told.attention, told.replay) == ("native", "yes")
    with registry.load(tmp_path, plugin=FALLBACK, **settings) as llm:
        llm.generate(TextGenerationRequest(prompt=[1, 2, 3]), max_new_tokens=3, temperature=0.0, ignore_eos=True)
        assert llm.model._forward.operations == ()
        assert not llm.model._forward.obstacles


@needs_kernels
@pytest.mark.slow
def test_a_mixture_of_experts(tmp_path):
    """Core computes it: quantized, replayed, and in the memory that is planned."""
    checks = ("replay", "memory_plan", "batch", "int8", "int4")
    found = check_distribution(FALLBACK, tmp_path, only=checks, model_types=["olmoe"])
    assert {each.check: each.answer for each in found} == dict.fromkeys(checks, "passed")


@pytest.fixture
def no_kept_layers():
    """Nothing that was found of a config before, or is found now, is known to another test."""
    caches = (_layers, _names)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@needs_kernels
@pytest.mark.slow
@pytest.mark.usefixtures("no_kept_layers")
def test_a_mixture_that_transformers_computes_is_replayed_in_the_memory_that_is_planned(tmp_path, monkeypatch):
    """Which experts have rows is read on the host, and a step marks them for each of its tokens."""
    monkeypatch.setattr(layers, "mixture_like", lambda *_: None)
    found = check_distribution(FALLBACK, tmp_path, only=("replay", "memory_plan"), model_types=["olmoe"])
    assert [(each.check, each.answer) for each in found] == [("replay", "passed"), ("memory_plan", "passed")]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["gemma2", "gpt2", "mixtral", "gpt_oss"])
def test_answers(model_type, tiny_folder, tmp_path):
    """With the memory plan, and what is said of replaying steps."""
    reference = make_reference(model_type, vocab_size=len(TOKENS))
    llm = registry.load(save(reference, tmp_path, tiny_folder), plugin=FALLBACK, **SETTINGS)
    prompt = [(7 * i) % 250 for i in range(20)]
    output = llm.generate([TextGenerationRequest(prompt=prompt)], max_new_tokens=8, temperature=0.0, ignore_eos=True)
    assert output[0].tokens == greedy(reference, prompt, 8)
    assert_all_free(llm)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"model_type": "mamba"}, "keeps a state of earlier tokens"),
        ({"model_type": "t5"}, "has an encoder"),
        ({"model_type": "never_heard_of"}, "transformers does not know this model_type"),
        ({"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}, "does not know"),
        ({"model_type": "glm4", "hidden_size": "wide"}, "cannot make a model of its config.json"),
    ],
)
def test_refused_by_config_alone(entries, reason, tmp_path):
    folder = only_config(tmp_path, **entries)
    with pytest.raises(PluginNotFoundError, match="no plugin for model_type") as caught:
        registry.resolve(folder)
    assert reason in str(caught.value)
    with pytest.raises(UnsupportedModelError, match="'pipezoo-transformers' refuses this model") as caught:
        registry.resolve(folder, plugin=FALLBACK)
    assert reason in str(caught.value)


def test_a_type_that_is_nearly_one_that_is_served(tmp_path):
    with pytest.raises(PluginNotFoundError, match="Did you mean 'llama'"):
        registry.resolve(only_config(tmp_path, model_type="llamma"))


@pytest.mark.slow
def test_several_devices(folder):
    with pytest.raises(InvalidSettingError, match="one device"):
        registry.load(folder, **{name: SETTINGS[name] for name in SETTINGS.keys() - {"device"}}, devices=["cpu", "cpu"])
