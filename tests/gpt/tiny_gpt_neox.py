"""Tiny random GPT-NeoX models, made by transformers."""

from gguf_files import TOKENS
from gpt.architectures import ARCHITECTURES, SPECIAL
from tiny_models import randomize
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

GPT_NEOX = ARCHITECTURES["gpt_neox"]
SIZES = {
    "vocab_size": len(TOKENS),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
WIDE = {"hidden_size": 64, "num_attention_heads": 2}  # heads of 32 numbers, for the kernels


def rope(**changes):
    """RoPE of a part of each head: transformers' config completes the dictionary that it is given."""
    return {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, **changes}


def make(**changes):
    config = GPTNeoXConfig(**{**SIZES, **SPECIAL, **changes}, attn_implementation="eager")
    return randomize(GPTNeoXForCausalLM(config))
