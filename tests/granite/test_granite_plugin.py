"""What the granite plugin tells the registry, which configs it reads, and which it refuses."""

import json
import math
from copy import deepcopy

import pytest
from granite.tiny_granite import ARCHITECTURE
from transformers import GraniteMoeHybridConfig

from pipezoo import registry
from pipezoo_core.attention import kv_groups
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.recurrence import StateSpec
from pipezoo_granite.config import GraniteConfig

# As a config.json of the H models is, cut to what matters.
HYBRID = {
    "architectures": ["GraniteMoeHybridForCausalLM"],
    "attention_bias": False,
    "attention_multiplier": 0.0078125,
    "embedding_multiplier": 12,
    "hidden_act": "silu",
    "hidden_size": 1536,
    "intermediate_size": 512,
    "layer_types": (["mamba"] * 5 + ["attention"] + ["mamba"] * 4) * 4,
    "logits_scaling": 6,
    "mamba_chunk_size": 256,
    "mamba_conv_bias": True,
    "mamba_d_conv": 4,
    "mamba_d_head": 64,
    "mamba_d_state": 128,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "mamba_n_heads": 48,
    "mamba_proj_bias": False,
    "max_position_embeddings": 131072,
    "model_type": "granitemoehybrid",
    "num_attention_heads": 12,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 40,
    "num_key_value_heads": 4,
    "num_local_experts": 64,
    "position_embedding_type": "nope",
    "residual_multiplier": 0.22,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000,
    "shared_intermediate_size": 1024,
    "tie_word_embeddings": True,
    "vocab_size": 100352,
}
ALL_ATTENTION = {**HYBRID, "layer_types": ["attention"] * 40, "num_local_experts": 0, "position_embedding_type": "rope"}


def ours(raw):
    return GraniteConfig.from_huggingface(ARCHITECTURE.huggingface_config(deepcopy(raw)))


def test_config_of_a_checkpoint(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(HYBRID))
    resolution = registry.resolve(tmp_path)
    assert (resolution.plugin.distribution, resolution.plugin.name) == ("pipezoo-granite", "granitemoehybrid")
    config = ours(HYBRID)
    assert (config.head_dim, config.max_seq_len, config.rope_parameters) == (128, 131072, None)
    assert [i for i, spec in enumerate(config.layers) if not isinstance(spec, StateSpec)] == [5, 15, 25, 35]
    assert config.layers[0] == StateSpec(((3, 3328), (48, 128, 64)))
    assert config.layers[5].scale == 1 / 128


@pytest.mark.parametrize(
    "said",
    [
        HYBRID,
        ALL_ATTENTION,
        {},
        {"layers_block_type": ["attention", "mamba"], "num_hidden_layers": 2},
        {"mamba_d_head": "auto", "mamba_n_heads": 64, "mamba_expand": 3, "hidden_size": 512},
        {
            "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5.0},
            "position_embedding_type": "rope",
        },
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "position_embedding_type": "rope"},
        {"num_key_value_heads": 8, "num_local_experts": 0, "time_step_limit": [0.1, 2.0]},
    ],
    ids=range(8),
)
def test_configs_are_read_as_transformers_reads_them(said):
    assert ours(said) == GraniteConfig.from_huggingface(GraniteMoeHybridConfig.from_dict(deepcopy(said)))


def test_a_limit_that_json_has_no_number_for():
    """As transformers writes it, and as Python does."""
    said = GraniteMoeHybridConfig(**HYBRID, time_step_limit=(0.5, math.inf)).to_json_string()
    assert "__float__" in said
    for raw in (json.loads(said), {**HYBRID, "time_step_limit": json.loads("[0.5, Infinity]")}):
        assert ours(raw).mamba.length_limits == (0.5, math.inf)
    for limits in ((-math.inf, 0.5), (0.5, math.nan), (math.inf, math.inf)):
        said = GraniteMoeHybridConfig(**HYBRID, time_step_limit=limits).to_json_string()
        with pytest.raises(UnsupportedModelError, match="time_step_limit"):
            ours(json.loads(said))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"layer_types": ["mamba", "sliding_attention"], "num_hidden_layers": 2}, "sliding_attention"),
        ({"hidden_act": "gelu"}, "activation function"),
        ({"position_embedding_type": "alibi"}, "position_embedding_type is unknown .*alibi"),
        (
            {
                "position_embedding_type": "rope",
                "rope_parameters": {"rope_type": "default", "rope_theta": 9.0, "partial_rotary_factor": 0.5},
            },
            "part of each head",
        ),
        ({"logits_scaling": 0}, "logits_scaling is no positive number"),
        ({"embedding_multiplier": None}, "embedding_multiplier is no positive number"),
        ({"attention_multiplier": math.nan}, "attention_multiplier"),
        ({"mamba_d_conv": 1}, "mamba_d_conv 1"),
        ({"mamba_n_heads": 0}, "mamba_n_heads 0"),
        ({"mamba_n_heads": None}, "mamba_n_heads None"),
        ({"mamba_expand": 0}, "mamba_expand 0"),
        ({"mamba_expand": -1}, "mamba_expand -1"),
        ({"mamba_n_groups": None}, "mamba_n_groups None"),
        ({"mamba_n_groups": 5}, "mamba_n_groups 5"),
        ({"mamba_d_state": 0}, "mamba_d_state 0"),
        ({"mamba_d_head": 32}, "mamba_d_head 32"),
        ({"mamba_d_head": "wide"}, "mamba_d_head 'wide'"),
        ({"time_step_limit": [1.0, 0.5]}, "time_step_limit"),
        ({"time_step_limit": None}, "time_step_limit"),
        ({"time_step_limit": [0.5]}, "time_step_limit"),
        ({"time_step_limit": [math.inf, math.inf]}, "time_step_limit"),
        ({"intermediate_size": 0}, "that of an expert, is not positive"),
        ({"intermediate_size": -8}, "that of an expert, is not positive"),
        ({"num_experts_per_tok": 65}, "65 of 64 experts"),
        ({"num_experts_per_tok": None}, "0 of 64 experts"),
        ({"shared_intermediate_size": 0}, "intermediate_size is not positive"),
    ],
    ids=str,
)
def test_what_is_refused(said, message):
    with pytest.raises(UnsupportedModelError, match=message):
        ours({**HYBRID, **said})


def test_attention_alone_may_have_any_activation_and_no_mamba():
    config = ours({**ALL_ATTENTION, "hidden_act": "gelu", "mamba_n_heads": 0})
    assert (config.mamba, config.routing, config.activation) == (None, None, "gelu")


def test_without_attention_it_is_refused():
    config = ours({**HYBRID, "layer_types": None})
    with pytest.raises(UnsupportedModelError, match="no layer with attention"):
        kv_groups(config.layers)
