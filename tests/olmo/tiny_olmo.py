"""Tiny random OLMo models, made by transformers."""

from gguf_files import TOKENS
from tiny_models import TINY_LLAMA, randomize
from transformers import (
    Olmo2Config,
    Olmo2ForCausalLM,
    Olmo3Config,
    Olmo3ForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
)

CLASSES = {
    "olmo": (OlmoConfig, OlmoForCausalLM),
    "olmo2": (Olmo2Config, Olmo2ForCausalLM),
    "olmo3": (Olmo3Config, Olmo3ForCausalLM),
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]


def make(family, **changes):
    config_class, model_class = CLASSES[family]
    own = {"sliding_window": 12, "layer_types": MIXED} if family == "olmo3" else {}
    values = {"vocab_size": len(TOKENS), "attn_implementation": "eager", "head_dim": 32, **own, **changes}
    if values["head_dim"] is None:
        del values["head_dim"]  # as in the checkpoints: what the heads have of the hidden state
    return randomize(model_class(config_class(**{**TINY_LLAMA, "pad_token_id": None, **values})))
