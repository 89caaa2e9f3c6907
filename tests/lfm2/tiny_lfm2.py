"""Tiny random LFM2 models, made by transformers."""

from gguf_files import TOKENS
from tiny_models import TINY_LLAMA, randomize
from transformers import Lfm2Config, Lfm2ForCausalLM

MIXED = ["conv", "full_attention", "conv"]


def make(**changes):
    """A model whose heads have 32 numbers, as the kernels want them."""
    values = {"vocab_size": len(TOKENS), "attn_implementation": "eager", "hidden_size": 64, "num_attention_heads": 2}
    values |= {"num_key_value_heads": 1, "block_multiple_of": 8, "layer_types": MIXED, "pad_token_id": None}
    return randomize(Lfm2ForCausalLM(Lfm2Config(**{**TINY_LLAMA, **values, **changes})))
