"""What the replit plugin tells the registry."""

import subprocess
import sys

from pipezoo_core.config import SupportedEncoding, WeightsFormat
from pipezoo_core.decoder import DecoderPipelineModel
from pipezoo_replit import plugin
from pipezoo_replit.config import read_huggingface_config


def test_architectures():
    architectures = plugin.pipezoo_architectures()
    assert [architecture.name for architecture in architectures] == ["MPTForCausalLM", "MptForCausalLM"]
    for architecture in architectures:
        assert architecture.model_types == ("mpt",)
        assert issubclass(architecture.pipeline_model, DecoderPipelineModel)
        assert architecture.huggingface_config({"model_type": "mpt", "n_heads": 6}).n_heads == 6
        assert list(architecture.weight_adapters) == [WeightsFormat.safetensors]
        assert architecture.supported_encodings == tuple(SupportedEncoding)
        assert architecture.config_from_gguf is None
        assert architecture.probe({"model_type": "mpt"}) is None


def test_reading_a_config_leaves_it_as_it_was():
    raw = {"attn_config": {"attn_type": "multiquery_attention", "clip_qkv": 6}, "logit_scale": 2}
    config = read_huggingface_config(raw)
    assert (config.attn_config.clip_qkv, config.logit_scale, config.num_key_value_heads) == (6.0, 2.0, 1)
    assert raw == {"attn_config": {"attn_type": "multiquery_attention", "clip_qkv": 6}, "logit_scale": 2}


def test_importing_the_plugin_imports_nothing_heavy():
    code = "import sys, pipezoo_replit.plugin; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
