"""Tiny random Qwen models, made by transformers."""

from gguf_files import TOKENS
from tiny_models import TINY_LLAMA, randomize
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from pipezoo_qwen.model import QwenPipelineModel
from pipezoo_qwen.weight_adapters import adapt_safetensors

CLASSES = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}


def make(family, **changes):
    config_class, model_class = CLASSES[family]
    own = {"head_dim": 16} if family == "qwen3" else {}
    values = {**TINY_LLAMA, "vocab_size": len(TOKENS), "attn_implementation": "eager", **own, **changes}
    return randomize(model_class(config_class(**values)))


def saved(reference, folder):
    """What `load_model` takes."""
    reference.save_pretrained(folder)
    return QwenPipelineModel, folder, reference.config, adapt_safetensors
