"""What the gemma plugin tells the registry, which configs it reads, and which it refuses."""

import json
from copy import deepcopy

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import Gemma2Config, Gemma3Config, Gemma3TextConfig
from transformers import GemmaConfig as TransformersGemmaConfig

from pipezoo import registry
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_gemma.config import GemmaConfig
from pipezoo_gemma.huggingface_config import (
    Gemma2HuggingFaceConfig,
    Gemma3TextHuggingFaceConfig,
    GemmaHuggingFaceConfig,
    text_part,
)

# As the checkpoints' config.json files, cut to what matters.
GEMMA_2B = {
    "architectures": ["GemmaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "head_dim": 256,
    "hidden_act": "gelu",
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "max_position_embeddings": 8192,
    "model_type": "gemma",
    "num_attention_heads": 8,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "vocab_size": 256000,
}
GEMMA2_9B = {
    "architectures": ["Gemma2ForCausalLM"],
    "attn_logit_softcapping": 50.0,
    "eos_token_id": 1,
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "model_type": "gemma2",
    "num_attention_heads": 16,
    "num_hidden_layers": 42,
    "num_key_value_heads": 8,
    "query_pre_attn_scalar": 256,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "sliding_window_size": 4096,
    "vocab_size": 256000,
}
GEMMA3_1B = {
    "architectures": ["Gemma3ForCausalLM"],
    "attn_logit_softcapping": None,
    "eos_token_id": [1, 106],
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
GEMMA3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model", "num_hidden_layers": 27},
}
CHECKPOINTS = {"gemma-2b": GEMMA_2B, "gemma-2-9b": GEMMA2_9B, "gemma-3-1b": GEMMA3_1B, "gemma-3-4b": GEMMA3_4B}
OURS = {
    "gemma": GemmaHuggingFaceConfig.from_dict,
    "gemma2": Gemma2HuggingFaceConfig.from_dict,
    "gemma3_text": Gemma3TextHuggingFaceConfig.from_dict,
    "gemma3": text_part,
}
THEIRS = {
    "gemma": TransformersGemmaConfig.from_dict,
    "gemma2": Gemma2Config.from_dict,
    "gemma3_text": Gemma3TextConfig.from_dict,
    "gemma3": lambda raw: Gemma3Config.from_dict(raw).text_config,
}


def ours(raw, family=None):
    return GemmaConfig.from_huggingface(OURS[family or raw["model_type"]](deepcopy(raw)))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_configs_of_the_checkpoints(name, tmp_path):
    raw = CHECKPOINTS[name]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    resolution = registry.resolve(tmp_path)
    assert (resolution.plugin.distribution, resolution.plugin.name) == ("pipezoo-gemma", raw["model_type"])
    config = ours(raw)
    assert config == GemmaConfig.from_huggingface(THEIRS[raw["model_type"]](deepcopy(raw)))
    assert config.activation == "gelu_pytorch_tanh"
    assert config.tie_word_embeddings
    assert OURS[raw["model_type"]](raw).eos_token_id == raw["eos_token_id"]


def test_windows_scores_and_rotations():
    specs = ours(GEMMA2_9B).layers
    assert [spec.sliding_window for spec in specs] == [4096, None] * 21
    assert {(spec.softcap, spec.scale) for spec in specs} == {(50.0, 1 / 16)}
    assert {(spec.softcap, spec.sliding_window) for spec in ours(GEMMA_2B).layers} == {(None, None)}
    config = ours(GEMMA3_4B)
    assert config.max_seq_len == 131072
    assert [spec.sliding_window for spec in config.layers[:7]] == [1024] * 5 + [None, 1024]
    assert config.rope_of_layers[:7] == (0, 0, 0, 0, 0, 1, 0)
    local, full = config.ropes
    assert (local["rope_type"], local["rope_theta"]) == ("default", 1e4)
    assert (full["rope_type"], full["rope_theta"], full["factor"]) == ("linear", 1e6, 8.0)


LAYERS = ["sliding_attention", "full_attention"]
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 99.0}


SAID = [
    {},
    {"rope_theta": 500.0},
    {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    {"num_hidden_layers": 5, "sliding_window_pattern": 2},
    {"num_hidden_layers": 2, "layer_types": LAYERS},
    {"max_position_embeddings": 77, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    {"tie_word_embeddings": False, "attention_bias": True, "query_pre_attn_scalar": 7},
]
SAID_BY_KIND = [  # of Gemma 3 alone: the others have one rotation
    {"rope_parameters": {"full_attention": YARN}},
    {"rope_parameters": {"full_attention": YARN, "sliding_attention": None}, "rope_local_base_freq": 7.0},
]


@pytest.mark.parametrize(
    ("family", "said"),
    [(family, said) for said in SAID for family in ("gemma", "gemma2", "gemma3_text")]
    + [("gemma3_text", said) for said in SAID_BY_KIND],
    ids=str,
)
def test_configs_are_read_as_transformers_reads_them(family, said):
    assert ours(said, family) == GemmaConfig.from_huggingface(THEIRS[family](deepcopy(said)))


def test_a_scaling_is_known_by_its_old_name():
    raw = {"rope_scaling": {"type": "linear", "factor": 8.0}}  # transformers 5 would leave it out
    assert ours(raw, "gemma3_text").ropes[1]["rope_type"] == "linear"


@pytest.mark.parametrize(
    ("family", "said", "why"),
    [
        ("gemma", {"hidden_act": "no_such_function"}, "activation function is unknown"),
        ("gemma2", {"hidden_activation": "no_such_function"}, "activation function is unknown"),
        ("gemma2", {"layer_types": ["full_attention", "chunked_attention"]}, "layer_types are not what its layers"),
        ("gemma2", {"layer_types": ["full_attention"]}, "must be equal to the number of"),
        ("gemma2", {"sliding_window": None}, "sliding_window is no number above 0"),
        ("gemma3_text", {"sliding_window": 0}, "sliding_window is no number above 0"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is no number above 0"),
        ("gemma2", {"attn_logit_softcapping": 0.0}, "attn_logit_softcapping is no number above 0"),
        ("gemma2", {"final_logit_softcapping": -3.0}, "final_logit_softcapping is no number above 0"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "scores of Gemma 3 have no bound"),
        ("gemma3", {"text_config": {"attn_logit_softcapping": 50.0}}, "scores of Gemma 3 have no bound"),
        ("gemma", {"rope_scaling": {"rope_type": "mrope"}}, "unknown kind of RoPE"),
        ("gemma2", {"partial_rotary_factor": 0.5}, "rotates heads whole"),
        ("gemma2", {"num_attention_heads": 3, "num_key_value_heads": 2}, "query heads cannot be shared evenly"),
    ],
    ids=str,
)
def test_refused(family, said, why):
    with pytest.raises((UnsupportedModelError, StrictDataclassError), match=why):
        ours({"num_hidden_layers": 2, **said}, family)


@pytest.mark.parametrize("raw", [GEMMA3_1B, GEMMA3_4B], ids=["text", "whole"])
def test_models_whose_tokens_see_later_ones_are_refused(raw, tmp_path):
    changed = deepcopy(raw)
    changed.get("text_config", changed)["use_bidirectional_attention"] = True
    (tmp_path / "config.json").write_text(json.dumps(changed))
    with pytest.raises(UnsupportedModelError, match="use_bidirectional_attention"):
        registry.resolve(tmp_path)
