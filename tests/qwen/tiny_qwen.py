"""Tiny random Qwen models, made by transformers."""

import json

from gguf_files import TOKENS
from tiny_models import TINY_LLAMA, randomize
from transformers import (
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from pipezoo_qwen.plugin import pipezoo_architectures
from pipezoo_qwen.weight_adapters import adapt_safetensors

CLASSES = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}

MIXTURES = {"qwen2_moe": (Qwen2MoeConfig, Qwen2MoeForCausalLM), "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM)}
ARCHITECTURES = {architecture.model_types[0]: architecture for architecture in pipezoo_architectures()}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
OWN = {
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 40},
    "qwen3_moe": {**EXPERTS, "head_dim": 16},
}


def make(family, **changes):
    config_class, model_class = {**CLASSES, **MIXTURES}[family]
    values = {**TINY_LLAMA, "vocab_size": len(TOKENS), "attn_implementation": "eager", **OWN[family], **changes}
    return randomize(model_class(config_class(**values)))


def saved(reference, folder):
    """What `load_model` takes, the config read from its file as the registry does."""
    reference.save_pretrained(folder)
    architecture = ARCHITECTURES[reference.config.model_type]
    config = architecture.huggingface_config(json.loads((folder / "config.json").read_text()))
    return architecture.pipeline_model, folder, config, adapt_safetensors
