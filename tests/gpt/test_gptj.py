"""GPT-J against transformers on the same weights, and which configs are refused."""

import json

import pytest
import torch
from families import (
    NATIVE,
    assert_adapters_equal_merged,
    assert_equal_greedy_tokens,
    assert_equal_logits,
    assert_equal_on_ranks,
    assert_matters,
    assert_near_logits,
    expected_logits,
    save,
    why_not_replayed,
)
from gpt.architectures import saved
from gpt.tiny_gptj import GPTJ, WIDE, make
from kernels_here import needs_kernels
from safetensors.torch import load_file, save_file
from tiny_models import load_model
from transformers import AutoConfig, AutoModelForCausalLM, GPTJConfig

from pipezoo import registry
from pipezoo_core.config import SupportedEncoding
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.request import TextGenerationRequest

pytestmark = pytest.mark.matrix

CONFIGS = {
    "default": {},
    "activation": {"activation_function": "relu"},
    "eps": {"layer_norm_epsilon": 0.1},
    "inner": {"n_inner": 48},
    "tied": {"tie_word_embeddings": True},
    "pair": {"rotary_dim": 2},
    "whole": {"rotary_dim": 8},
}
PAGE = 8 * 2 * 3 * 4 * 4 * 8  # 8 tokens: keys and values of 3 layers, 4 heads, 4 bytes per number, 8 numbers per head
GPT_J_6B = {  # as the checkpoint's config.json, cut to what matters
    "activation_function": "gelu_new",
    "architectures": ["GPTJForCausalLM"],
    "layer_norm_epsilon": 1e-05,
    "model_type": "gptj",
    "n_embd": 4096,
    "n_head": 16,
    "n_inner": None,
    "n_layer": 28,
    "n_positions": 2048,
    "rotary": True,
    "rotary_dim": 64,
    "scale_attn_weights": True,
    "tie_word_embeddings": False,
    "vocab_size": 50400,
}


def config_of(raw):
    return GPTJ.pipeline_model.config_class.from_huggingface(GPTJ.huggingface_config(raw))


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name, tmp_path):
    reference = make(**CONFIGS[name])
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path)))


@needs_kernels
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_of_native_kernels(name, tmp_path):
    changes = {"rotary_dim": 32} if name == "whole" else CONFIGS[name]
    reference = make(**{**WIDE, **changes})
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path), **NATIVE), chunks=(None,))


@pytest.mark.parametrize("name", ["activation", "eps", "pair", "whole"])
def test_switches_matter(name):
    assert_matters(make(), make(**CONFIGS[name]))


def test_masks_of_the_first_checkpoints(tmp_path):
    reference = make()
    model = saved(reference, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for i in range(3):
        tensors[f"transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 4, 4)
        tensors[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e9)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert torch.equal(expected_logits(theirs, [3, 1, 4]), expected_logits(reference, [3, 1, 4]))
    assert_equal_logits(reference, load_model(*model), chunks=(None,))


def test_greedy_tokens_equal_transformers(tiny_folder, tmp_path):
    reference = make()
    assert_equal_greedy_tokens(reference, save(reference, tmp_path, tiny_folder), few_pages=16 * PAGE)


@needs_kernels
def test_steps_are_replayed(tiny_folder, tmp_path):
    assert why_not_replayed(save(make(**WIDE), tmp_path, tiny_folder), dtype="float32") is None


def test_adapters_equal_merged_models(tmp_path):
    """Those of queries and keys are trained for a rotation of neighbours, too."""
    reference = make()
    model = saved(reference, tmp_path / "model")
    targets = ["q_proj", "k_proj", "out_proj", "fc_in"]
    assert_adapters_equal_merged(reference, model, tmp_path, target_modules=targets)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["default", "tied"])
def test_ranks_equal_transformers(name, tmp_path):
    reference = make(**CONFIGS[name])
    assert_equal_on_ranks(reference, saved(reference, tmp_path / "model"), tmp_path)


@needs_kernels
@pytest.mark.parametrize(("encoding", "most"), [("bfloat16", 0.06), ("int8", 0.15)])
def test_lower_precision_is_near(encoding, most, tmp_path):
    reference = make(**WIDE)
    model = load_model(*saved(reference, tmp_path), **NATIVE, encoding=SupportedEncoding(encoding))
    assert_near_logits(reference, model, most)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_answers_in_lower_precision(dtype, tiny_folder, tmp_path):
    folder = save(make(**WIDE), tmp_path, tiny_folder)
    with registry.load(folder, dtype=dtype, device="cpu", kv_cache_memory="1MiB") as llm:
        (output,) = llm.generate([TextGenerationRequest(prompt=[5, 6, 7])], max_new_tokens=8, ignore_eos=True)
        assert len(output.tokens) == 8


def test_defaults_are_those_of_transformers():
    assert config_of({}) == GPTJ.pipeline_model.config_class.from_huggingface(GPTJConfig())
    mine, theirs = GPTJ.huggingface_config({}), GPTJConfig()
    assert (mine.bos_token_id, mine.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)


def test_config_of_the_checkpoint(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(GPT_J_6B))
    resolution = registry.resolve(tmp_path)
    assert (resolution.plugin.distribution, resolution.plugin.name) == ("pipezoo-gpt", "gptj")
    config = config_of(GPT_J_6B)
    assert config == type(config).from_huggingface(AutoConfig.from_pretrained(tmp_path))
    assert (config.head_dim, config.rotary_dim, config.intermediate_size) == (256, 64, 16384)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ({"activation_function": "no_such_function"}, "activation function is unknown"),
        ({"n_head": 5}, "do not divide"),
        ({"n_head": 0}, "do not divide"),
        ({"rotary_dim": 0}, "no number of pairs"),
        ({"rotary_dim": 7}, "no number of pairs"),
        ({"rotary_dim": None}, "no number of pairs of a head .found: None; allowed"),
        ({"n_head": 128}, "no number of pairs"),
    ],
    ids=str,
)
def test_refused(raw, why):
    with pytest.raises(UnsupportedModelError, match=why):
        config_of(raw)
