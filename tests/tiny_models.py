"""Tiny random checkpoints, made by transformers, and pipezoo's model over them."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipezoo_core.config import KVCacheConfig, PipelineConfig, ReturnLogits
from pipezoo_core.json_file import read_json_object
from pipezoo_core.session import InferenceSession
from pipezoo_core.testing.steps import logits_of
from pipezoo_core.weights import find_safetensors, open_safetensors, with_quantized

__all__ = ["TINY_LLAMA", "cache_memory", "load_model", "logits_of", "make_llama", "randomize"]

TINY_LLAMA = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def cache_memory(num_pages):
    """Returns the bytes of so many pages, of 8 tokens each, of the tiny llama's KV cache in float32."""
    head_dim = TINY_LLAMA["hidden_size"] // TINY_LLAMA["num_attention_heads"]
    numbers_per_token = 2 * TINY_LLAMA["num_hidden_layers"] * TINY_LLAMA["num_key_value_heads"] * head_dim
    return num_pages * 8 * numbers_per_token * 4


def randomize(model, seed=0):
    """Gives every parameter, norms and biases included, values that matter to the result."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm" in name and name.endswith("weight") else 0.2 * noise)
    return model.eval()


def make_llama(**changes):
    return randomize(LlamaForCausalLM(LlamaConfig(**{**TINY_LLAMA, **changes})))


def load_model(
    model_class, folder, huggingface_config, adapter, *, return_logits=ReturnLogits.ALL, group=None, **settings
):
    """Loads pipezoo's model from a folder, in float32 on the CPU; of a group's model this rank's part."""
    values = {"kv_cache": KVCacheConfig(page_size=8, kv_cache_memory=2**22), **settings}
    paths = find_safetensors(folder)
    config = PipelineConfig(model_path=str(folder), weight_paths=paths, **values)
    encoding = config.encoding
    raw = folder / "config.json"
    session = InferenceSession([torch.device("cpu")] * (group.size if group else 1), group)
    return model_class(
        pipeline_config=config,
        session=session,
        huggingface_config=huggingface_config,
        encoding=encoding,
        devices=session.devices,
        kv_cache_config=config.kv_cache,
        weights=with_quantized(open_safetensors(paths), read_json_object(raw) if raw.exists() else {}),
        adapter=adapter,
        return_logits=return_logits,
    )
