"""Tiny random Nemotron-H models, made by transformers."""

import json

import torch
from gguf_files import TOKENS
from tiny_models import TINY_LLAMA, randomize
from transformers import NemotronHConfig, NemotronHForCausalLM

from pipezoo_nemotron.plugin import pipezoo_architectures
from pipezoo_nemotron.weight_adapters import adapt_safetensors

(ARCHITECTURE,) = pipezoo_architectures()
TINY = {
    "vocab_size": len(TOKENS),
    "max_position_embeddings": TINY_LLAMA["max_position_embeddings"],
    "attn_implementation": "eager",
    "experts_implementation": "eager",  # others take no odd sizes
    "hidden_size": 64,
    "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp", "linear_attention"],
    "num_attention_heads": 3,  # of 32 numbers, as the kernels want them; together they are no hidden size
    "num_key_value_heads": 1,
    "head_dim": 32,
    "intermediate_size": 96,
    "ssm_state_size": 12,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "chunk_size": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 40,
    "moe_shared_expert_intermediate_size": 48,
    "routed_scaling_factor": 2.5,
    "pad_token_id": None,
}


def make(**changes):
    reference = randomize(NemotronHForCausalLM(NemotronHConfig(**{**TINY, **changes})))
    for name, buffer in reference.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(torch.linspace(0.2, -0.2, len(buffer)))
    return reference


def saved(reference, folder):
    """What `load_model` takes, the config read from its file as the registry does."""
    reference.save_pretrained(folder)
    config = ARCHITECTURE.huggingface_config(json.loads((folder / "config.json").read_text()))
    return ARCHITECTURE.pipeline_model, folder, config, adapt_safetensors
