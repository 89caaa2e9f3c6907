"""Tiny random BLOOM models, made by transformers."""

from gguf_files import TOKENS
from gpt.architectures import ARCHITECTURES, SPECIAL
from tiny_models import randomize
from transformers import BloomConfig, BloomForCausalLM

BLOOM = ARCHITECTURES["bloom"]
SIZES = {"vocab_size": len(TOKENS), "hidden_size": 32, "n_layer": 3, "n_head": 4}


def make(**changes):
    """Its scores are large enough that their scale matters."""
    model = randomize(BloomForCausalLM(BloomConfig(**{**SIZES, **SPECIAL, "attn_implementation": "eager", **changes})))
    for block in model.transformer.h:
        block.self_attention.query_key_value.weight.data *= 2
    return model
