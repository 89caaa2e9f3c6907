"""Tiny random Phi models, made by transformers."""

import json

from gguf_files import TOKENS
from tiny_models import TINY_LLAMA, randomize
from transformers import Phi3Config, Phi3ForCausalLM, PhiConfig, PhiForCausalLM

from pipezoo_core.config import WeightsFormat
from pipezoo_phi.plugin import pipezoo_architectures

CLASSES = {"phi": (PhiConfig, PhiForCausalLM), "phi3": (Phi3Config, Phi3ForCausalLM)}
ARCHITECTURES = {architecture.model_types[0]: architecture for architecture in pipezoo_architectures()}
SIZES = {**TINY_LLAMA, "vocab_size": len(TOKENS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def make(family, **changes):
    config_class, model_class = CLASSES[family]
    return randomize(model_class(config_class(**{**SIZES, "attn_implementation": "eager", **changes})))


def saved(reference, folder):
    """What `load_model` takes, the config read from its file as the registry does."""
    reference.save_pretrained(folder)
    architecture = ARCHITECTURES[reference.config.model_type]
    config = architecture.huggingface_config(json.loads((folder / "config.json").read_text()))
    return architecture.pipeline_model, folder, config, architecture.weight_adapters[WeightsFormat.safetensors]
