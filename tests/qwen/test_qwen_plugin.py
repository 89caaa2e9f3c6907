"""What the qwen plugin tells the registry, which configs it reads, and which it refuses."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import Qwen2Config, Qwen3Config

from pipezoo import registry
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_qwen.config import QwenConfig
from pipezoo_qwen.huggingface_config import Qwen2HuggingFaceConfig, Qwen3HuggingFaceConfig

# As the checkpoints' config.json files, cut to what matters.
QWEN2_5_0_5B = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3_0_6B = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
OURS = {"qwen2": Qwen2HuggingFaceConfig, "qwen3": Qwen3HuggingFaceConfig}
THEIRS = {"qwen2": Qwen2Config, "qwen3": Qwen3Config}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(("raw", "head_dim", "length"), [(QWEN2_5_0_5B, 64, 32768), (QWEN3_0_6B, 128, 40960)])
def test_configs_of_the_checkpoints(raw, head_dim, length, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(raw))
    resolution = registry.resolve(tmp_path)
    assert (resolution.plugin.distribution, resolution.plugin.name) == ("pipezoo-qwen", raw["model_type"])
    config = QwenConfig.from_huggingface(resolution.architecture.huggingface_config(raw))
    assert (config.head_dim, config.max_seq_len, config.num_layers) == (head_dim, length, raw["num_hidden_layers"])
    assert {spec.sliding_window for spec in config.layers} == {None}
    assert config.tie_word_embeddings
    assert config.rope_parameters["rope_theta"] == 1e6
    assert config.qkv_bias == (raw is QWEN2_5_0_5B)
    assert config.qk_norm == (raw is QWEN3_0_6B)


def test_yarn_as_the_model_cards_show_it():
    raw = {**QWEN2_5_0_5B, "rope_scaling": YARN}
    assert QwenConfig.from_huggingface(Qwen2HuggingFaceConfig.from_dict(raw)).max_seq_len == 4 * 32768


@pytest.mark.parametrize("family", OURS)
@pytest.mark.parametrize(
    "said",
    [
        {},
        {"use_sliding_window": True, "sliding_window": 99, "max_window_layers": 2, "num_hidden_layers": 5},
        {"use_sliding_window": True, "sliding_window": None},
        {"use_sliding_window": False, "sliding_window": 99, "max_window_layers": 0},
        {"use_sliding_window": True, "sliding_window": 7, "num_hidden_layers": 1, "layer_types": ["full_attention"]},
        {"num_key_value_heads": None},
    ],
    ids=str,
)
def test_windows_are_those_of_transformers(family, said):
    mine, theirs = OURS[family].from_dict(dict(said)), THEIRS[family].from_dict(dict(said))
    assert (mine.layer_types, mine.sliding_window) == (theirs.layer_types, theirs.sliding_window)
    assert mine.num_key_value_heads == theirs.num_key_value_heads
    assert QwenConfig.from_huggingface(mine) == QwenConfig.from_huggingface(theirs)


WINDOWED = ["full_attention", "sliding_attention"]


@pytest.mark.parametrize("family", OURS)
@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"hidden_act": "no_such_function"}, "activation function is unknown"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "layer_types are not what its layers can be"),
        ({"layer_types": ["full_attention"]}, "must be equal to the number of"),
        ({"layer_types": WINDOWED}, "does not say how many tokens"),
        ({"layer_types": WINDOWED, "use_sliding_window": True, "sliding_window": 0}, "does not say how many tokens"),
        ({"layer_types": WINDOWED, "sliding_window": 8}, "does not say how many tokens"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "rotates a part of each head"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}, "unknown kind of RoPE"),
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, "query heads cannot be shared evenly"),
    ],
    ids=str,
)
def test_refused(family, said, why):
    raw = {"num_hidden_layers": 2, **said}
    with pytest.raises((UnsupportedModelError, StrictDataclassError), match=why):
        QwenConfig.from_huggingface(OURS[family].from_dict(raw))
