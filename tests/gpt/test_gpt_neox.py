"""GPT-NeoX against transformers on the same weights, and which configs are refused."""

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
from gpt.tiny_gpt_neox import GPT_NEOX, WIDE, make, rope
from kernels_here import needs_kernels
from safetensors.torch import load_file, save_file
from tiny_models import load_model
from transformers import AutoConfig, AutoModelForCausalLM, GPTNeoXConfig

from pipezoo import registry
from pipezoo_core.config import SupportedEncoding
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.request import TextGenerationRequest

pytestmark = pytest.mark.matrix

BY_LENGTH = {"dynamic", "longrope"}  # their frequencies are those of a request's length
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "rope_type": "longrope",
    "original_max_position_embeddings": 64,
    "short_factor": [1.0, 1.5],
    "long_factor": [2.0, 5.0],
}
CONFIGS = {
    "default": {},
    "sequential": {"use_parallel_residual": False},
    "no_bias": {"attention_bias": False},
    "activation": {"hidden_act": "relu"},
    "gelu_fast": {"hidden_act": "gelu_fast"},
    "eps": {"layer_norm_eps": 0.1},
    "tied": {"tie_word_embeddings": True},
    "part": {"rope_parameters": rope(partial_rotary_factor=0.75)},
    "whole": {"rope_parameters": rope(partial_rotary_factor=1.0)},
    "theta": {"rope_parameters": rope(rope_theta=10.0)},
    "linear": {"rope_parameters": rope(rope_type="linear", factor=4.0)},
    "yarn": {"rope_parameters": rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)},
    "llama3": {"rope_parameters": rope(**LLAMA3)},
    "dynamic": {"rope_parameters": rope(rope_type="dynamic", factor=4.0), "max_position_embeddings": 32},
    "proportional": {"rope_parameters": rope(rope_type="proportional")},
    "longrope": {"rope_parameters": rope(**LONGROPE)},
}
PAGE = 8 * 2 * 3 * 4 * 4 * 8  # 8 tokens: keys and values of 3 layers, 4 heads, 4 bytes per number, 8 numbers per head
PYTHIA = {  # as the checkpoints' config.json, cut to what matters
    "architectures": ["GPTNeoXForCausalLM"],
    "hidden_act": "gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "model_type": "gpt_neox",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "use_parallel_residual": True,
    "vocab_size": 50304,
}


def config_of(raw):
    return GPT_NEOX.pipeline_model.config_class.from_huggingface(GPT_NEOX.huggingface_config(raw))


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name, tmp_path):
    reference = make(**CONFIGS[name])
    chunks = (None,) if name in BY_LENGTH else (None, 7)
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path)), chunks=chunks)


@needs_kernels
@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "longrope"])
def test_logits_of_native_kernels(name, tmp_path):
    reference = make(**{**WIDE, **CONFIGS[name]})
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path), **NATIVE), chunks=(None,))


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("default", "gelu_fast", "no_bias", "tied")])
def test_switches_matter(name):
    assert_matters(make(rope_parameters=rope()), make(**{"rope_parameters": rope(), **CONFIGS[name]}))


def test_the_names_of_the_first_checkpoints(tmp_path):
    """Their head has another name, and they store masks and frequencies."""
    reference = make()
    model = saved(reference, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["embed_out.weight"] = tensors.pop("lm_head.weight", tensors.get("embed_out.weight"))
    for i in range(3):
        tensors[f"gpt_neox.layers.{i}.attention.bias"] = torch.ones(1, 1, 4, 4)
        tensors[f"gpt_neox.layers.{i}.attention.masked_bias"] = torch.tensor(-1e9)
        tensors[f"gpt_neox.layers.{i}.attention.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert torch.equal(expected_logits(theirs, [3, 1, 4]), expected_logits(reference, [3, 1, 4]))
    assert_equal_logits(reference, load_model(*model), chunks=(None,))


def test_a_fused_matrix_of_another_size_is_reported(tmp_path):
    _, _, config, adapt = saved(make(), tmp_path)
    name, tensor = "gpt_neox.layers.0.attention.query_key_value.weight", object.__new__(_OfSevenRows)
    assert adapt({name: tensor}, config) == {name: tensor}


class _OfSevenRows:
    shape = (7, 32)


def test_greedy_tokens_equal_transformers(tiny_folder, tmp_path):
    reference = make()
    assert_equal_greedy_tokens(reference, save(reference, tmp_path, tiny_folder), few_pages=16 * PAGE)


@needs_kernels
@pytest.mark.parametrize("name", ["default", "sequential"])
def test_steps_are_replayed(name, tiny_folder, tmp_path):
    folder = save(make(**WIDE, **CONFIGS[name]), tmp_path, tiny_folder)
    assert why_not_replayed(folder, dtype="float32") is None


def test_adapters_equal_merged_models(tmp_path):
    """PEFT adapts the fused layer, whose rows a plugin's adapter puts in another order."""
    reference = make()
    model = saved(reference, tmp_path / "model")
    targets = ["query_key_value", "dense", "dense_h_to_4h"]
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
    assert config_of({}) == GPT_NEOX.pipeline_model.config_class.from_huggingface(GPTNeoXConfig())
    mine, theirs = GPT_NEOX.huggingface_config({}), GPTNeoXConfig()
    assert (mine.bos_token_id, mine.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rotary_pct": 1.0, "rotary_emb_base": 500},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_parameters": rope(rope_type="dynamic", factor=3.0)},
        {"rope_theta": 5.0, "partial_rotary_factor": 0.5},  # not this type's names
    ],
    ids=str,
)
def test_configs_of_checkpoints(changes, tmp_path):
    raw = {**PYTHIA, **changes}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    resolution = registry.resolve(tmp_path)
    assert (resolution.plugin.distribution, resolution.plugin.name) == ("pipezoo-gpt", "gpt_neox")
    assert config_of(raw) == type(config_of(raw)).from_huggingface(AutoConfig.from_pretrained(tmp_path))


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ({"hidden_act": "no_such_function"}, "activation function is unknown"),
        ({"num_attention_heads": 5}, "do not divide"),
        ({"num_attention_heads": 0}, "do not divide"),
        ({"head_dim": 7}, "head_dim that GPT-NeoX has not"),
        ({"rope_scaling": {"type": "no_such_rope"}}, "unknown kind of RoPE"),
    ],
    ids=str,
)
def test_refused(raw, why):
    with pytest.raises(UnsupportedModelError, match=why):
        config_of(raw)


def test_a_part_that_is_no_pairs_is_refused(tiny_folder, tmp_path):
    folder = save(make(rope_parameters=rope(partial_rotary_factor=0.375)), tmp_path, tiny_folder)
    with pytest.raises(UnsupportedModelError, match="no pairs"):
        registry.load(folder, device="cpu", kv_cache_memory="1MiB")
