"""Tiny random gpt-oss models, made by transformers."""

from gguf_files import TOKENS
from tiny_models import TINY_LLAMA, randomize
from transformers import GptOssConfig, GptOssForCausalLM

from pipezoo_gpt_oss.model import GptOssPipelineModel
from pipezoo_gpt_oss.weight_adapters import adapt_safetensors

YARN = {
    "rope_type": "yarn",
    "rope_theta": 150000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "truncate": False,
}
SIZES = {
    **TINY_LLAMA,
    "vocab_size": len(TOKENS),
    "intermediate_size": 40,
    "head_dim": 16,
    "num_local_experts": 6,
    "num_experts_per_tok": 3,
    "sliding_window": 12,
    "rope_parameters": YARN,
}


def make(**changes):
    return randomize(GptOssForCausalLM(GptOssConfig(**{**SIZES, "attn_implementation": "eager", **changes})))


def saved(reference, folder):
    """What `load_model` takes."""
    reference.save_pretrained(folder)
    return GptOssPipelineModel, folder, reference.config, adapt_safetensors
