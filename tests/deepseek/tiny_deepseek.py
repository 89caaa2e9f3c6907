"""Tiny random DeepSeek models, made by transformers."""

import torch
from gguf_files import TOKENS
from tiny_models import TINY_LLAMA, randomize
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM, DeepseekV3Config, DeepseekV3ForCausalLM

from pipezoo_deepseek.model import DeepseekPipelineModel
from pipezoo_deepseek.weight_adapters import adapt_safetensors

CLASSES = {
    "deepseek_v2": (DeepseekV2Config, DeepseekV2ForCausalLM),
    "deepseek_v3": (DeepseekV3Config, DeepseekV3ForCausalLM),
}
SIZES = {
    **TINY_LLAMA,
    "vocab_size": len(TOKENS),
    "num_key_value_heads": 4,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 20,
    "q_lora_rank": 12,
    "qk_nope_head_dim": 14,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
}


def make(family, **changes):
    config_class, model_class = CLASSES[family]
    model = randomize(model_class(config_class(**{**SIZES, "attn_implementation": "eager", **changes})))
    generator = torch.Generator().manual_seed(1)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator))
    return model


def saved(reference, folder):
    """What `load_model` takes."""
    reference.save_pretrained(folder)
    return DeepseekPipelineModel, folder, reference.config, adapt_safetensors
