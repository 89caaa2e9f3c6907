"""Logits of the llama plugin against transformers on the same weights, for everything a LlamaConfig can express."""

import pytest
from families import NATIVE, assert_equal_logits
from kernels_here import needs_kernels
from tiny_models import load_model, make_llama
from transformers.activations import ACT2FN

from pipezoo_llama.model import LlamaPipelineModel
from pipezoo_llama.weight_adapters import adapt_safetensors

pytestmark = pytest.mark.matrix

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
CONFIGS = {
    "default": {},
    "multi_head": {"num_key_value_heads": 4},
    "multi_query": {"num_key_value_heads": 1},
    "head_dim": {"head_dim": 20},
    "attention_bias": {"attention_bias": True},
    "mlp_bias": {"mlp_bias": True},
    "tied": {"tie_word_embeddings": True},
    "rope_theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "dynamic": {
        "max_position_embeddings": 32,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    },
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "yarn": {"rope_parameters": YARN},
    "yarn_all": {"rope_parameters": {**YARN, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 0.8}},
    "yarn_mscale": {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.4}},
    "yarn_not_truncated": {"rope_parameters": {**YARN, "truncate": False}},
}
ACTIVATIONS = ["gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "relu2", "silu", "tanh"]


def load(reference, folder, **settings):
    reference.save_pretrained(folder)
    return load_model(LlamaPipelineModel, folder, reference.config, adapt_safetensors, **settings)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name, tmp_path):
    reference = make_llama(**CONFIGS[name])
    assert_equal_logits(reference, load(reference, tmp_path))


@needs_kernels
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_of_native_kernels(name, tmp_path):
    """The kernels want heads and pages of 32."""
    reference = make_llama(**{**CONFIGS[name], "head_dim": 32})
    assert_equal_logits(reference, load(reference, tmp_path, **NATIVE))


def test_plain_torch(tmp_path):
    reference = make_llama(attention_bias=True)
    assert_equal_logits(reference, load(reference, tmp_path, attention="paged", linear="torch"))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation(activation, tmp_path):
    assert activation in ACT2FN
    reference = make_llama(hidden_act=activation)
    assert_equal_logits(reference, load(reference, tmp_path))


def test_sharded(tmp_path):
    reference = make_llama()
    reference.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_equal_logits(reference, load_model(LlamaPipelineModel, tmp_path, reference.config, adapt_safetensors))
