"""What the mistral plugin tells the registry."""

import json
import subprocess
import sys

import pytest

from pipezoo import registry
from pipezoo_core.config import SupportedEncoding, WeightsFormat
from pipezoo_core.decoder import DecoderPipelineModel
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_mistral import plugin


def test_architecture():
    (architecture,) = plugin.pipezoo_architectures()
    assert architecture.name == "MistralForCausalLM"
    assert architecture.model_types == ("mistral",)
    assert issubclass(architecture.pipeline_model, DecoderPipelineModel)
    assert architecture.huggingface_config({"model_type": "mistral", "sliding_window": 7}).sliding_window == 7
    assert list(architecture.weight_adapters) == [WeightsFormat.safetensors]
    assert architecture.supported_encodings == tuple(SupportedEncoding)
    assert architecture.config_from_gguf is None
    assert architecture.probe({"model_type": "mistral"}) is None


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
        ({"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 12}, "layer_types"),
        ({"layer_types": ["full_attention"] * 2, "sliding_window": 12}, "layer_types"),
        ({"layer_types": ["sliding_attention"] * 2, "sliding_window": None}, "layer_types"),
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
    ],
)
def test_what_it_computes_is_served(config, tmp_path):
    assert resolve(tmp_path, **config).architecture.name == "MistralForCausalLM"
