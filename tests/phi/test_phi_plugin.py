"""What the phi plugin tells the registry, which configs it reads, and which it refuses."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from phi.tiny_phi import ARCHITECTURES, CLASSES, make, saved
from transformers import AutoConfig

from pipezoo import registry
from pipezoo_core.errors import UnsupportedModelError

# As the checkpoints' config.json files, cut to what matters.
PHI_2 = {
    "architectures": ["PhiForCausalLM"],
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "model_type": "phi",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "partial_rotary_factor": 0.4,
    "qk_layernorm": False,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": 51200,
}
PHI_3_MINI_128K = {
    "architectures": ["Phi3ForCausalLM"],
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "model_type": "phi3",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096,
    "rope_scaling": {"type": "longrope", "short_factor": [1.05] * 48, "long_factor": [2.5] * 48},
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "vocab_size": 32064,
}


def config_of(raw):
    architecture = ARCHITECTURES[raw["model_type"]]
    config_class = architecture.pipeline_model.config_class
    return config_class.from_huggingface(architecture.huggingface_config(json.loads(json.dumps(raw))))


@pytest.mark.parametrize("raw", [PHI_2, PHI_3_MINI_128K], ids=["phi-2", "phi-3-mini-128k"])
def test_configs_of_the_checkpoints(raw, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(raw))
    resolution = registry.resolve(tmp_path)
    assert (resolution.plugin.distribution, resolution.plugin.name) == ("pipezoo-phi", raw["model_type"])
    config, theirs = config_of(raw), AutoConfig.from_pretrained(tmp_path)
    assert config == type(config).from_huggingface(theirs)


def test_phi_2_rotates_a_part_of_heads_of_80():
    config = config_of(PHI_2)
    assert (config.head_dim, config.rope_parameters["partial_rotary_factor"]) == (80, 0.4)


@pytest.mark.parametrize("name", ["su", "yarn"])
def test_the_first_names_of_longrope(name):
    raw = {**PHI_3_MINI_128K, "rope_scaling": {**PHI_3_MINI_128K["rope_scaling"], "type": name}}
    config = config_of(raw)
    assert config.rope_parameters["rope_type"] == "longrope"
    assert (config.max_seq_len, config.max_shareable_prompt) == (131072, 4096)


@pytest.mark.parametrize("family", CLASSES)
def test_defaults_are_those_of_transformers(family):
    config_class = ARCHITECTURES[family].pipeline_model.config_class
    mine, theirs = ARCHITECTURES[family].huggingface_config({}), CLASSES[family][0]()
    assert config_class.from_huggingface(mine) == config_class.from_huggingface(theirs)
    assert (mine.bos_token_id, mine.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)


def test_a_fused_matrix_of_another_size_is_reported(tmp_path):
    _, _, config, adapt = saved(make("phi3"), tmp_path)
    name, tensor = "model.layers.0.self_attn.qkv_proj.weight", object.__new__(_OfSevenRows)
    assert adapt({name: tensor}, config) == {name: tensor}


class _OfSevenRows:
    shape = (7, 32)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ({"model_type": "phi", "hidden_act": "no_such_function"}, "activation function is unknown"),
        ({"model_type": "phi3", "hidden_act": "no_such_function"}, "activation function is unknown"),
        ({"model_type": "phi3", "sliding_window": 0}, "shows no token"),
        ({"model_type": "phi3", "rope_scaling": {"type": "linear", "factor": 2.0}}, "no such RoPE"),
        ({"model_type": "phi", "rope_scaling": {"type": "proportional"}}, "proportional RoPE"),
        ({"model_type": "phi", "num_attention_heads": 3, "num_key_value_heads": 2}, "query heads cannot be shared"),
    ],
    ids=str,
)
def test_refused(raw, why):
    with pytest.raises((UnsupportedModelError, StrictDataclassError), match=why):
        config_of(raw)
