"""What the gpt-oss plugin tells the registry, which configs it reads, and which it refuses."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import GptOssConfig as TheirConfig

from pipezoo import registry
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_gpt_oss.config import GptOssConfig
from pipezoo_gpt_oss.huggingface_config import GptOssHuggingFaceConfig

GPT_OSS_20B = {  # as the checkpoint's config.json, cut to what matters
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "eos_token_id": 200002,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "vocab_size": 201088,
}


def test_config_of_the_checkpoint(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(GPT_OSS_20B))
    resolution = registry.resolve(tmp_path)
    assert (resolution.plugin.distribution, resolution.plugin.name) == ("pipezoo-gpt-oss", "gpt_oss")
    config = GptOssConfig.from_huggingface(resolution.architecture.huggingface_config(GPT_OSS_20B))
    assert (config.head_dim, config.max_seq_len, config.num_layers) == (64, 131072, 24)
    assert [spec.sliding_window for spec in config.layers] == [128, None] * 12
    assert all(spec.has_sinks for spec in config.layers)
    assert (config.routing.num_experts, config.routing.top_k) == (32, 4)
    assert (config.gate.limit, config.gate.alpha) == (7.0, 1.702)
    assert config.rope_parameters["rope_theta"] == 150000
    assert config.rope_parameters["truncate"] is False


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"num_hidden_layers": 5, "sliding_window": 99},
        {"num_experts": 7},
        {"rope_theta": 1e4},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"swiglu_limit": 3.0, "swiglu_alpha": 1.0},
        {"num_hidden_layers": 1, "layer_types": ["full_attention"], "sliding_window": None},
    ],
    ids=str,
)
def test_configs_are_read_as_by_transformers(said):
    mine, theirs = (config.from_dict(dict(said)) for config in (GptOssHuggingFaceConfig, TheirConfig))
    assert GptOssConfig.from_huggingface(mine) == GptOssConfig.from_huggingface(theirs)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"layer_types": ["full_attention", "chunked_attention"]}, "layer_types are not what its layers can be"),
        ({"layer_types": ["full_attention"]}, "must be equal to the number of"),
        ({"sliding_window": None}, "does not say how many tokens"),
        ({"sliding_window": 0}, "does not say how many tokens"),
        ({"num_experts_per_tok": 129}, "experts cannot be chosen"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "only a part of each head"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}, "unknown kind of RoPE"),
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, "query heads cannot be shared evenly"),
    ],
    ids=str,
)
def test_refused(said, why):
    raw = {"num_hidden_layers": 2, **said}
    with pytest.raises((UnsupportedModelError, StrictDataclassError), match=why):
        GptOssConfig.from_huggingface(GptOssHuggingFaceConfig.from_dict(raw))
