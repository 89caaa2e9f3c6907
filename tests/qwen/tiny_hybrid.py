"""Tiny random hybrid Qwen models, made by transformers."""

import json

from gguf_files import TOKENS
from tiny_models import TINY_LLAMA, randomize
from transformers import (
    Qwen3_5ForCausalLM,
    Qwen3_5MoeForCausalLM,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from pipezoo_qwen.hybrid.weight_adapters import adapt_hybrid
from pipezoo_qwen.plugin import pipezoo_architectures

ARCHITECTURES = {architecture.model_types[0]: architecture for architecture in pipezoo_architectures()}
CLASSES = {
    "qwen3_next": (Qwen3NextConfig, Qwen3NextForCausalLM),
    "qwen3_5_text": (Qwen3_5TextConfig, Qwen3_5ForCausalLM),
    "qwen3_5_moe_text": (Qwen3_5MoeTextConfig, Qwen3_5MoeForCausalLM),
}
LAYERS = ["linear_attention", "full_attention", "linear_attention"]
EXPERTS = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
}
TINY = {
    **TINY_LLAMA,
    "vocab_size": len(TOKENS),
    "attn_implementation": "eager",
    "head_dim": 16,
    "layer_types": LAYERS,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
}


def make(family, **changes):
    config_class, model_class = CLASSES[family]
    experts = {} if family == "qwen3_5_text" else EXPERTS
    return randomize(model_class(config_class(**{**TINY, **experts, **changes})))


def saved(reference, folder):
    """What `load_model` takes, the config read from its file as the registry does."""
    reference.save_pretrained(folder)
    architecture = ARCHITECTURES[reference.config.model_type]
    config = architecture.huggingface_config(json.loads((folder / "config.json").read_text()))
    return architecture.pipeline_model, folder, config, adapt_hybrid
