"""What the nemotron plugin tells the registry, which configs it reads, and which it refuses."""

import json
import math
from copy import deepcopy

import pytest
from nemotron.tiny_nemotron import ARCHITECTURE
from transformers import NemotronHConfig

from pipezoo import registry
from pipezoo_core.attention import AttentionSpec, kv_groups
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.recurrence import StateSpec
from pipezoo_nemotron.config import NemotronConfig

# As config.json files of Nemotron Nano 2 and Nemotron 3 Nano are, cut to what matters.
DENSE = {
    "architectures": ["NemotronHForCausalLM"],
    "attention_bias": False,
    "conv_kernel": 4,
    "head_dim": 128,
    "hidden_size": 4480,
    "hybrid_override_pattern": "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-",
    "intermediate_size": 15680,
    "layer_norm_epsilon": 1e-05,
    "mamba_head_dim": 80,
    "mamba_hidden_act": "silu",
    "mamba_num_heads": 128,
    "max_position_embeddings": 131072,
    "mlp_hidden_act": "relu2",
    "model_type": "nemotron_h",
    "n_groups": 8,
    "num_attention_heads": 40,
    "num_hidden_layers": 56,
    "num_key_value_heads": 8,
    "ssm_state_size": 128,
    "tie_word_embeddings": False,
    "time_step_limit": [0.0, math.inf],
    "time_step_min": 0.001,
    "use_bias": False,
    "use_conv_bias": True,
    "vocab_size": 131072,
}
MIXTURE = {
    **DENSE,
    "hidden_size": 2688,
    "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
    "intermediate_size": 1856,
    "mamba_head_dim": 64,
    "mamba_num_heads": 64,
    "moe_intermediate_size": 1856,
    "moe_shared_expert_intermediate_size": 3712,
    "n_group": 1,
    "n_routed_experts": 128,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 52,
    "num_key_value_heads": 2,
    "routed_scaling_factor": 2.5,
    "topk_group": 1,
}


def ours(raw):
    return NemotronConfig.from_huggingface(ARCHITECTURE.huggingface_config(deepcopy(raw)))


def test_config_of_a_checkpoint(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(MIXTURE))
    resolution = registry.resolve(tmp_path)
    assert (resolution.plugin.distribution, resolution.plugin.name) == ("pipezoo-nemotron", "nemotron_h")
    config = ours(MIXTURE)
    assert (config.num_layers, config.max_seq_len, config.intermediate_size) == (52, 131072, 3712)
    assert [config.kinds.count(kind) for kind in ("linear_attention", "full_attention", "moe", "mlp")] == [23, 6, 23, 0]
    assert [i for i, spec in enumerate(config.layers) if isinstance(spec, AttentionSpec)] == [5, 12, 19, 26, 33, 42]
    assert config.layers[1] is None
    assert config.layers[0] == StateSpec(((3, 6144), (64, 128, 64)))
    assert sum(spec is not None for spec in ours(DENSE).layers) == 27 + 4


@pytest.mark.parametrize(
    "said",
    [
        DENSE,
        MIXTURE,
        {},
        {"layers_block_type": ["mamba", "attention", "mlp"], "num_hidden_layers": 9},
        {"layer_types": ["attention", "moe"], "hybrid_override_pattern": "MM*"},
        {**DENSE, "layers_block_type": ["attention"], "num_key_value_heads": 40},
        {"mamba_n_groups": 4, "mamba_d_conv": 2, "mamba_dt_min": 0.5, "mamba_conv_bias": False},
        {"moe_latent_size": 64, "moe_shared_expert_intermediate_size": 0, "num_local_experts": 16},
        {"use_bias": True, "mlp_bias": True, "mlp_hidden_act": "silu", "tie_word_embeddings": True},
    ],
    ids=range(9),
)
def test_configs_are_read_as_transformers_reads_them(said):
    assert ours(said) == NemotronConfig.from_huggingface(NemotronHConfig.from_dict(deepcopy(said)))


def test_a_list_of_kinds_that_is_null_is_none():
    for name, other in (("layer_types", "layers_block_type"), ("layers_block_type", "layer_types")):
        kinds = {name: ["mamba", "attention", "mlp"]}
        assert ours({**DENSE, **kinds, other: None}) == ours({**DENSE, **kinds})
    assert ours({**DENSE, "layers_block_type": None, "layer_types": None}) == ours(DENSE)


def test_what_transformers_writes_is_read():
    said = json.loads(NemotronHConfig(**{**MIXTURE, "num_nextn_predict_layers": 1}).to_json_string())
    assert ours(said) == ours(MIXTURE)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"hybrid_override_pattern": "MX*"}, "layer_types are not what .*X"),
        ({"layers_block_type": ["mamba", "sliding_attention"]}, "sliding_attention"),
        ({"mamba_hidden_act": "gelu"}, "activation function"),
        ({"mlp_hidden_act": "relu3"}, "activation function is unknown .*relu3"),
        ({"conv_kernel": 1}, "conv_kernel 1"),
        ({"mamba_num_heads": 0}, "mamba_num_heads 0"),
        ({"mamba_head_dim": 0}, "mamba_head_dim 0"),
        ({"n_groups": 5}, "n_groups 5"),
        ({"ssm_state_size": -1}, "ssm_state_size -1"),
        ({"time_step_min": math.nan}, "time_step_min is no limit"),
        ({"time_step_min": math.inf}, "time_step_min is no limit"),
        ({"time_step_min": -0.5}, "time_step_min is no limit"),
        ({"moe_intermediate_size": 0}, "moe_intermediate_size 0"),
        ({"moe_latent_size": 0}, "moe_latent_size 0"),
        ({"moe_shared_expert_intermediate_size": -1}, "moe_shared_expert_intermediate_size -1"),
        ({"num_experts_per_tok": 129}, "129 of 128 experts"),
        ({"n_group": 128}, "by their 2 best"),
        ({"routed_scaling_factor": math.nan}, "scale is that of no model"),
        ({"layer_norm_epsilon": math.inf}, "rms_norm_eps is that of no model"),
        ({"num_attention_heads": 31}, "cannot be shared evenly"),
        ({"hybrid_override_pattern": "M*-", "intermediate_size": 0}, "intermediate_size is not positive"),
    ],
    ids=str,
)
def test_what_is_refused(said, message):
    with pytest.raises(UnsupportedModelError, match=message):
        ours({**MIXTURE, **said})


def test_sizes_of_layers_that_are_not_there_do_not_matter():
    config = ours({**DENSE, "hybrid_override_pattern": "*-", "mamba_num_heads": 0, "mamba_hidden_act": "gelu"})
    assert (config.mamba, config.mixture) == (None, None)
    assert ours({**DENSE, "hybrid_override_pattern": "M*", "intermediate_size": 0}).intermediate_size == 4480


def test_without_attention_it_is_refused():
    config = ours({**DENSE, "hybrid_override_pattern": "M-ME"})
    with pytest.raises(UnsupportedModelError, match="no layer with attention"):
        kv_groups(config.layers)
