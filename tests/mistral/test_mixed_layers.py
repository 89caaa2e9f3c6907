"""Mistral whose config says of each layer whether it has a window, against transformers' Ministral."""

import json

import pytest
from families import NATIVE, assert_equal_greedy_tokens, assert_equal_logits, assert_matters, save
from gguf_files import TOKENS
from mistral.test_ministral3 import HAS_KERNELS
from tiny_models import TINY_LLAMA, load_model, randomize
from transformers import MinistralConfig, MinistralForCausalLM

from pipezoo import registry
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_mistral.config import MistralConfig
from pipezoo_mistral.huggingface_config import MistralHuggingFaceConfig
from pipezoo_mistral.plugin import pipezoo_architectures

FULL, SLIDING = "full_attention", "sliding_attention"
MIXED = [SLIDING, FULL, SLIDING]
(MISTRAL,) = (each for each in pipezoo_architectures() if each.name == "MistralForCausalLM")


def make(**changes):
    values = {**TINY_LLAMA, "vocab_size": len(TOKENS), "sliding_window": 12, "layer_types": MIXED, "head_dim": 8}
    return randomize(MinistralForCausalLM(MinistralConfig(**{**values, **changes}, attn_implementation="eager")))


def calls_itself_mistral(folder):
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "model_type": "mistral", "architectures": ["MistralForCausalLM"]}))
    return folder


def saved(reference, folder):
    reference.save_pretrained(folder)
    raw = json.loads((calls_itself_mistral(folder) / "config.json").read_text())
    return MISTRAL.pipeline_model, folder, MISTRAL.huggingface_config(raw), MISTRAL.weight_adapters["safetensors"]


@pytest.mark.parametrize("kinds", [MIXED, [FULL] * 3, [SLIDING] * 3, [FULL, FULL, SLIDING]], ids=str)
def test_logits_equal_transformers(kinds, tmp_path):
    reference = make(layer_types=kinds)
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path)))


@pytest.mark.skipif(not HAS_KERNELS, reason="pipezoo-kernels cannot be used here")
def test_logits_of_native_kernels(tmp_path):
    reference = make(head_dim=32)
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path), **NATIVE))


def test_the_kinds_matter():
    assert_matters(make(), make(layer_types=[SLIDING] * 3))
    assert_matters(make(), make(layer_types=[FULL] * 3))


def test_greedy_tokens_equal_transformers(tiny_folder, tmp_path):
    reference = make()
    folder = calls_itself_mistral(save(reference, tmp_path, tiny_folder))
    assert_equal_greedy_tokens(reference, folder, few_pages=18 * 8 * 2 * 3 * 2 * 8 * 4)


def test_layers_with_a_window_have_pages_of_their_own(tiny_folder, tmp_path):
    with registry.load(
        calls_itself_mistral(save(make(), tmp_path, tiny_folder)), device="cpu", kv_cache_memory="4MiB"
    ) as llm:
        assert {group.sliding_window for group in llm.kv_managers[0].params.groups} == {None, 12}


@pytest.mark.parametrize(
    "said",
    [
        {"layer_types": MIXED, "sliding_window": None},
        {"layer_types": [FULL, "chunked_attention", FULL]},
        {"layer_types": [FULL]},
    ],
    ids=str,
)
def test_refused(said):
    config = MistralHuggingFaceConfig.from_dict({**TINY_LLAMA, "sliding_window": 12})
    for name, value in said.items():
        setattr(config, name, value)
    with pytest.raises(UnsupportedModelError, match="layer_types are not what its layers can be"):
        MistralConfig.from_huggingface(config)


def test_other_types_that_say_so_are_refused(tmp_path):
    for model_type, name in (("ministral3", "Ministral3ForCausalLM"), ("mixtral", "MixtralForCausalLM")):
        raw = {"model_type": model_type, "architectures": [name], "layer_types": MIXED, "sliding_window": 12}
        (tmp_path / "config.json").write_text(json.dumps(raw))
        with pytest.raises(UnsupportedModelError, match="layer_types are not all"):
            registry.resolve(tmp_path)
