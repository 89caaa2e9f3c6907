"""What the olmo plugin tells the registry, which configs it reads, and which it refuses."""

import json
from copy import deepcopy

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import Olmo2Config, Olmo3Config
from transformers import OlmoConfig as TransformersOlmoConfig

from pipezoo import registry
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_olmo.config import OlmoConfig
from pipezoo_olmo.huggingface_config import Olmo3HuggingFaceConfig, OlmoHuggingFaceConfig, olmo2_or_3

# As the checkpoints' config.json files, cut to what matters.
OLMO_7B = {
    "architectures": ["OlmoForCausalLM"],
    "attention_bias": False,
    "clip_qkv": 8.0,
    "eos_token_id": 50279,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 2048,
    "model_type": "olmo",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "vocab_size": 50304,
}
OLMO2_7B = {
    "architectures": ["Olmo2ForCausalLM"],
    "eos_token_id": 100257,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "olmo2",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 500000,
    "vocab_size": 100352,
}
OLMO3_7B = {
    **OLMO2_7B,
    "architectures": ["Olmo3ForCausalLM"],
    "model_type": "olmo3",
    "max_position_embeddings": 65536,
    "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 8,
    "sliding_window": 4096,
    "rope_scaling": {
        "attention_factor": 1.2079441541679836,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "yarn",
    },
    "vocab_size": 100278,
}
CHECKPOINTS = {"OLMo-7B": OLMO_7B, "OLMo-2-7B": OLMO2_7B, "Olmo-3-7B": OLMO3_7B}
OURS = {"olmo": OlmoHuggingFaceConfig.from_dict, "olmo2": olmo2_or_3, "olmo3": Olmo3HuggingFaceConfig.from_dict}
THEIRS = {
    "olmo": TransformersOlmoConfig.from_dict,
    "olmo2": Olmo2Config.from_dict,
    "olmo3": Olmo3Config.from_dict,
}


def ours(raw, family=None):
    return OlmoConfig.from_huggingface(OURS[family or raw["model_type"]](deepcopy(raw)))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_configs_of_the_checkpoints(name, tmp_path):
    raw = CHECKPOINTS[name]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    resolution = registry.resolve(tmp_path)
    assert (resolution.plugin.distribution, resolution.plugin.name) == ("pipezoo-olmo", raw["model_type"])
    config = ours(raw)
    assert config == OlmoConfig.from_huggingface(THEIRS[raw["model_type"]](deepcopy(raw)))
    assert (config.head_dim, config.max_seq_len) == (128, raw["max_position_embeddings"])
    assert config.clip_qkv == raw.get("clip_qkv")
    assert OURS[raw["model_type"]](raw).eos_token_id == raw["eos_token_id"]


def test_windows_and_rotations():
    config = ours(OLMO3_7B)
    assert [spec.sliding_window for spec in config.layers[:5]] == [4096, 4096, 4096, None, 4096]
    assert config.rope_of_layers[:5] == (0, 0, 0, 1, 0)
    assert [rope["rope_type"] for rope in config.ropes] == ["default", "yarn"]
    assert {rope["rope_theta"] for rope in config.ropes} == {500000}
    assert {spec.sliding_window for spec in ours(OLMO2_7B).layers} == {None}


YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 99.0}


@pytest.mark.parametrize("family", OURS)
@pytest.mark.parametrize(
    "said",
    [
        {},
        {"num_attention_heads": 4, "num_key_value_heads": None},
        {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"max_position_embeddings": 77, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        {"tie_word_embeddings": True, "attention_bias": True, "clip_qkv": 7.0},
    ],
    ids=str,
)
def test_configs_are_read_as_transformers_reads_them(family, said):
    assert ours(said, family) == OlmoConfig.from_huggingface(THEIRS[family](deepcopy(said)))


@pytest.mark.parametrize(
    "said",
    [
        {"rope_parameters": {"full_attention": YARN}},
        {"rope_parameters": {"full_attention": YARN, "sliding_attention": None}},
        {"rope_parameters": dict.fromkeys(["full_attention", "sliding_attention"], YARN), "rope_theta": 3.0},
        {"num_hidden_layers": 5},
        {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]},
    ],
    ids=str,
)
def test_kinds_of_layers_are_read_as_transformers_reads_them(said):
    assert ours(said, "olmo3") == OlmoConfig.from_huggingface(Olmo3Config.from_dict(deepcopy(said)))


@pytest.mark.parametrize(
    ("family", "said", "why"),
    [
        ("olmo", {"hidden_act": "no_such_function"}, "activation function is unknown"),
        ("olmo", {"clip_qkv": 0.0}, "clip_qkv is no number above 0"),
        ("olmo2", {"rope_scaling": {"rope_type": "mrope"}}, "unknown kind of RoPE"),
        ("olmo2", {"partial_rotary_factor": 0.5}, "rotates heads whole"),
        ("olmo2", {"num_attention_heads": 3, "num_key_value_heads": 2}, "query heads cannot be shared evenly"),
        ("olmo3", {"layer_types": ["full_attention", "chunked_attention"]}, "layer_types are not what its layers"),
        ("olmo3", {"layer_types": ["full_attention"]}, "must be equal to the number of"),
        ("olmo3", {"sliding_window": None}, "sliding_window is no number above 0"),
        ("olmo3", {"sliding_window": 0}, "sliding_window is no number above 0"),
        ("olmo3", {"rope_theta": 10000.0}, "which layers its rope_theta is of"),
    ],
    ids=str,
)
def test_refused(family, said, why):
    with pytest.raises((UnsupportedModelError, StrictDataclassError), match=why):
        ours({"num_hidden_layers": 2, **said}, family)
