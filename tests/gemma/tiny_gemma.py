"""Tiny random Gemma models, made by transformers."""

import torch
from gguf_files import TOKENS
from tiny_models import TINY_LLAMA, randomize
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
)

CLASSES = {
    "gemma": (GemmaConfig, GemmaForCausalLM),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
}
WINDOWED = ("gemma2", "gemma3")
MIXED = ["full_attention", "sliding_attention", "sliding_attention"]


def make(family, **changes):
    config_class, model_class = CLASSES[family]
    own = {"sliding_window": 12, "layer_types": MIXED[::-1], "query_pre_attn_scalar": 16} if family in WINDOWED else {}
    if "sliding_window_pattern" in changes:
        del own["layer_types"]
    values = {**TINY_LLAMA, "vocab_size": len(TOKENS), "attn_implementation": "eager", "head_dim": 32, **own, **changes}
    model = randomize(model_class(config_class(**values)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.sub_(1)  # Gemma's norms add the 1
    return model
