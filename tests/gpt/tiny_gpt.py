"""Tiny random GPT-2 models, made by transformers."""

from gguf_files import TOKENS
from gpt.architectures import ARCHITECTURES, SPECIAL
from tiny_models import randomize
from transformers import GPT2Config, GPT2LMHeadModel

GPT2 = ARCHITECTURES["gpt2"]
SIZES = {"vocab_size": len(TOKENS), "n_positions": 256, "n_embd": 32, "n_layer": 3, "n_head": 4}


def make(**changes):
    """Its scores are large enough that their scale matters."""
    model = randomize(GPT2LMHeadModel(GPT2Config(**{**SIZES, **SPECIAL, "attn_implementation": "eager", **changes})))
    for block in model.transformer.h:
        block.attn.c_attn.weight.data *= 3
    return model
