"""Tiny random Falcon models, made by transformers."""

from gguf_files import TOKENS
from gpt.architectures import ARCHITECTURES, SPECIAL
from tiny_models import randomize
from transformers import FalconConfig, FalconForCausalLM

FALCON = ARCHITECTURES["falcon"]
SIZES = {
    "vocab_size": len(TOKENS),
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
NEW = {"new_decoder_architecture": True, "num_kv_heads": 2}


def make(**changes):
    """Scores of any width are large enough that positions matter; norms are of the size that trained ones have."""
    config = FalconConfig(**{**SIZES, **SPECIAL, "attn_implementation": "eager", **changes})
    model = randomize(FalconForCausalLM(config))
    for name, parameter in model.named_parameters():
        if ".query_key_value." in name:
            parameter.data *= 64 / config.hidden_size
        if ".ln_" in name and name.endswith(".weight"):
            parameter.data += 1
    return model
