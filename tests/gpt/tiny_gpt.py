"""Tiny random GPT-2 models, made by transformers."""

import json

from gguf_files import TOKENS
from tiny_models import randomize
from transformers import GPT2Config, GPT2LMHeadModel

from pipezoo_core.config import WeightsFormat
from pipezoo_gpt.plugin import pipezoo_architectures

GPT2, *_ = pipezoo_architectures()
SIZES = {"vocab_size": len(TOKENS), "n_positions": 256, "n_embd": 32, "n_layer": 3, "n_head": 4}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def make(**changes):
    """Its scores are large enough that their scale matters."""
    model = randomize(GPT2LMHeadModel(GPT2Config(**{**SIZES, **SPECIAL, "attn_implementation": "eager", **changes})))
    for block in model.transformer.h:
        block.attn.c_attn.weight.data *= 3
    return model


def saved(reference, folder):
    """What `load_model` takes, the config read from its file as the registry does."""
    reference.save_pretrained(folder)
    config = GPT2.huggingface_config(json.loads((folder / "config.json").read_text()))
    return GPT2.pipeline_model, folder, config, GPT2.weight_adapters[WeightsFormat.safetensors]
