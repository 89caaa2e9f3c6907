"""What the mistral plugin tells the registry."""

import json
import subprocess
import sys

import pytest
import torch

from pipezoo import registry
from pipezoo_core.config import KVCacheConfig, SupportedEncoding, WeightsFormat
from pipezoo_core.decoder import DecoderPipelineModel
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_mistral import plugin
from pipezoo_mistral.config import MistralConfig


def test_architecture():
    architecture, ministral3, mistral3, mixtral = plugin.pipezoo_architectures()
    assert architecture.name == "MistralForCausalLM"
    assert architecture.model_types == ("mistral",)
    assert issubclass(architecture.pipeline_model, DecoderPipelineModel)
    assert architecture.huggingface_config({"model_type": "mistral", "sliding_window": 7}).sliding_window == 7
    assert list(architecture.weight_adapters) == [WeightsFormat.safetensors]
    assert architecture.supported_encodings == tuple(SupportedEncoding)
    assert architecture.config_from_gguf is None
    assert architecture.probe({"model_type": "mistral"}) is None
    assert (ministral3.name, ministral3.model_types) == ("Ministral3ForCausalLM", ("ministral3",))
    assert (mistral3.name, mistral3.model_types) == ("Mistral3ForConditionalGeneration", ("mistral3",))
    assert (mixtral.name, mixtral.model_types) == ("MixtralForCausalLM", ("mixtral",))
    assert mixtral.probe({"model_type": "mixtral", "num_local_experts": 8}) is None
    assert ministral3.probe({"model_type": "ministral3", "layer_types": ["full_attention"]}) is None
    assert "layer_types" in ministral3.probe({"model_type": "ministral3", "layer_types": ["sliding_attention"]})


def test_importing_the_plugin_imports_nothing_heavy():
    code = "import sys, pipezoo_mistral.plugin; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def resolve(folder, **config):
    raw = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], **config}
    (folder / "config.json").write_text(json.dumps(raw))
    return registry.resolve(folder)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"num_local_experts": 8}, "mixture of experts"),
        ({"sliding_window": 0}, "sliding_window"),
    ],
)
def test_what_it_does_not_compute_is_refused(config, reason, tmp_path):
    with pytest.raises(UnsupportedModelError, match=reason):
        resolve(tmp_path, **config)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"layer_types": None, "num_local_experts": None, "sliding_window": None},
        {"layer_types": ["sliding_attention"] * 2, "sliding_window": 12},
        {"layer_types": ["full_attention"] * 2, "sliding_window": None},
        {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 12},
    ],
)
def test_what_it_computes_is_served(config, tmp_path):
    assert resolve(tmp_path, **config).architecture.name == "MistralForCausalLM"


RELEASED_7B = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.34.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
RELEASED_V02 = {**RELEASED_7B, "rope_theta": 1000000.0, "sliding_window": None, "attention_dropout": 0.0}
RELEASED_V03 = {**RELEASED_V02, "vocab_size": 32768}
RELEASED_NEMO = {
    **RELEASED_V02,
    "head_dim": 128,
    "hidden_size": 5120,
    "max_position_embeddings": 131072,
    "num_hidden_layers": 40,
    "vocab_size": 131072,
}


@pytest.mark.parametrize(
    ("raw", "window", "theta", "length", "vocab_size", "query_size"),
    [
        (RELEASED_7B, 4096, 1e4, 32768, 32000, 4096),
        (RELEASED_V02, None, 1e6, 32768, 32000, 4096),
        (RELEASED_V03, None, 1e6, 32768, 32768, 4096),
        (RELEASED_NEMO, None, 1e6, 131072, 131072, 4096),
    ],
)
def test_released_configs(raw, window, theta, length, vocab_size, query_size, tmp_path):
    architecture = resolve(tmp_path, **raw).architecture
    huggingface_config = architecture.huggingface_config(dict(raw))
    config = MistralConfig.from_huggingface(huggingface_config)
    assert {layer.sliding_window for layer in config.layers} == {window}
    assert config.rope_parameters["rope_theta"] == theta
    assert (config.max_seq_len, config.vocab_size) == (length, vocab_size)
    assert config.num_heads * config.head_dim == query_size
    assert (config.head_dim, config.num_kv_heads, config.layers[0].scale) == (128, 8, 128**-0.5)
    params = architecture.pipeline_model.get_kv_params(huggingface_config, 1, KVCacheConfig(), torch.bfloat16)
    assert params.groups[0].sliding_window == window
    # In steps of 2048 tokens: 6143 that may begin with the last of a page of 64.
    assert params.num_pages_held(length, 2048) == (length // 64 if window is None else 97,)
