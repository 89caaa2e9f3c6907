"""Tiny random Granite 4 models, made by transformers."""

import json

from gguf_files import TOKENS
from tiny_models import TINY_LLAMA, randomize
from transformers import GraniteMoeHybridConfig, GraniteMoeHybridForCausalLM

from pipezoo_granite.plugin import pipezoo_architectures
from pipezoo_granite.weight_adapters import adapt_safetensors

(ARCHITECTURE,) = pipezoo_architectures()
LAYERS = ["linear_attention", "full_attention", "linear_attention"]
TINY = {
    **TINY_LLAMA,
    "vocab_size": len(TOKENS),
    "attn_implementation": "eager",
    "hidden_size": 64,
    "num_attention_heads": 2,  # of 32 numbers, as the kernels want them
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "shared_intermediate_size": 48,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "layer_types": LAYERS,
    "mamba_n_heads": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 12,
    "mamba_chunk_size": 16,
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.25,
    "residual_multiplier": 0.5,
    "logits_scaling": 3.0,
    "pad_token_id": None,
}


def make(**changes):
    return randomize(GraniteMoeHybridForCausalLM(GraniteMoeHybridConfig(**{**TINY, **changes})))


def saved(reference, folder):
    """What `load_model` takes, the config read from its file as the registry does."""
    reference.save_pretrained(folder)
    config = ARCHITECTURE.huggingface_config(json.loads((folder / "config.json").read_text()))
    return ARCHITECTURE.pipeline_model, folder, config, adapt_safetensors
