"""Ministral 3 against transformers on the same weights: queries that are scaled by their position."""

from dataclasses import fields

import pytest
import torch
from families import (
    NATIVE,
    assert_adapters_equal_merged,
    assert_equal_greedy_tokens,
    assert_equal_logits,
    assert_equal_on_ranks,
    assert_matters,
    save,
    why_not_replayed,
)
from gguf_files import TOKENS
from tiny_models import TINY_LLAMA, load_model, randomize
from transformers import Ministral3Config, Ministral3ForCausalLM

from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.native import NativeKernels
from pipezoo_mistral.config import MistralConfig
from pipezoo_mistral.huggingface_config import Ministral3HuggingFaceConfig
from pipezoo_mistral.model import MistralPipelineModel
from pipezoo_mistral.weight_adapters import adapt_safetensors

pytestmark = pytest.mark.matrix

HAS_KERNELS = NativeKernels(torch.device("cpu"), torch.float32).obstacle is None
ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.5,
}
CONFIGS = {
    "default": {},
    "growth": {"rope_parameters": {**ROPE, "llama_4_scaling_beta": 0.1}},
    "no_growth": {"rope_parameters": {**ROPE, "llama_4_scaling_beta": 0.0}},
    "plain_rope": {"rope_parameters": {**ROPE, "rope_type": "default"}},
    "window": {"sliding_window": 12},
    "tied": {"tie_word_embeddings": True},
    "multi_query": {"num_key_value_heads": 1},
    "activation": {"hidden_act": "gelu"},
}


def make(**changes):
    values = {**TINY_LLAMA, "vocab_size": len(TOKENS), "head_dim": 32, "rope_parameters": dict(ROPE), **changes}
    return randomize(Ministral3ForCausalLM(Ministral3Config(**values, attn_implementation="eager")))


def saved(reference, folder):
    reference.save_pretrained(folder)
    return MistralPipelineModel, folder, reference.config, adapt_safetensors


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name, tmp_path):
    reference = make(**CONFIGS[name])
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path)))


@pytest.mark.skipif(not HAS_KERNELS, reason="pipezoo-kernels cannot be used here")
def test_logits_of_native_kernels(tmp_path):
    reference = make()
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path), **NATIVE))
    assert why_not_replayed(tmp_path, dtype="float32") is None


@pytest.mark.parametrize("name", ["growth", "no_growth", "plain_rope"])
def test_switches_matter(name):
    assert_matters(make(), make(**CONFIGS[name]))


def test_greedy_tokens_equal_transformers(tiny_folder, tmp_path):
    folder = save(make(), tmp_path, tiny_folder)
    assert_equal_greedy_tokens(make(), folder, few_pages=16 * 8 * 2 * 3 * 2 * 32 * 4)


@pytest.mark.slow
def test_ranks_equal_transformers(tmp_path):
    reference = make()
    assert_equal_on_ranks(reference, saved(reference, tmp_path / "model"), tmp_path)


def test_adapters_equal_merged_models(tmp_path):
    reference = make()
    assert_adapters_equal_merged(reference, saved(reference, tmp_path / "model"), tmp_path, target_modules=["q_proj"])


@pytest.mark.parametrize("wrong", [None, True])
@pytest.mark.parametrize("name", ["llama_4_scaling_beta", "original_max_position_embeddings"])
def test_a_config_that_does_not_say_the_scale_is_refused(name, wrong):
    rope = {**ROPE, "rope_type": "default", name: wrong}
    config = Ministral3HuggingFaceConfig.from_dict({"rope_parameters": rope})
    with pytest.raises(UnsupportedModelError, match="how Ministral 3 scales its queries"):
        MistralConfig.from_huggingface(config)


@pytest.mark.parametrize("said", [{}, {"sliding_window": 7, "head_dim": 64}, {"rope_parameters": ROPE}], ids=str)
def test_says_what_transformers_says(said):
    ours, theirs = Ministral3HuggingFaceConfig.from_dict(dict(said)), Ministral3Config.from_dict(dict(said))
    assert MistralConfig.from_huggingface(ours) == MistralConfig.from_huggingface(theirs)
    for field in fields(ours):
        assert getattr(ours, field.name) == getattr(theirs, field.name), field.name
