"""Tiny random GPT-J models, made by transformers."""

from gguf_files import TOKENS
from gpt.architectures import ARCHITECTURES, SPECIAL
from tiny_models import randomize
from transformers import GPTJConfig, GPTJForCausalLM

GPTJ = ARCHITECTURES["gptj"]
SIZES = {"vocab_size": len(TOKENS), "n_positions": 256, "n_embd": 32, "n_layer": 3, "n_head": 4, "rotary_dim": 4}
WIDE = {"n_embd": 64, "n_head": 2, "rotary_dim": 8}  # heads of 32 numbers, for the kernels


def make(**changes):
    """Its scores are large enough that their rotation matters."""
    config = GPTJConfig(**{**SIZES, **SPECIAL, **changes}, attn_implementation="eager")
    model = randomize(GPTJForCausalLM(config))
    for block in model.transformer.h:
        for projection in (block.attn.q_proj, block.attn.k_proj):
            projection.weight.data *= 5
    return model
