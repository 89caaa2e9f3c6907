"""Tiny random checkpoints, made by transformers, and pipezoo's model over them."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipezoo_core.config import KVCacheConfig, PipelineConfig, ReturnLogits
from pipezoo_core.context import TextContext
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_core.scheduling import hold_adapter
from pipezoo_core.session import InferenceSession
from pipezoo_core.weights import find_safetensors, open_safetensors

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
    session = InferenceSession([torch.device("cpu")] * (group.size if group else 1), group)
    return model_class(
        pipeline_config=config,
        session=session,
        huggingface_config=huggingface_config,
        encoding=encoding,
        devices=session.devices,
        kv_cache_config=config.kv_cache,
        weights=open_safetensors(paths),
        adapter=adapter,
        return_logits=return_logits,
    )


def logits_of(model, prompts, chunk=None, loras=None):
    """Feeds prompts as one batch, all at once or `chunk` tokens at a time, and returns each one's logits [S, V]."""
    contexts = [
        TextContext(
            request_id=str(i),
            prompt_tokens=prompt,
            max_length=10**6,
            sampling_params=SamplingParams(max_new_tokens=1),
            lora=lora,
        )
        for i, (prompt, lora) in enumerate(zip(prompts, loras or [None] * len(prompts), strict=True))
    ]
    rows = {context.request_id: [] for context in contexts}
    for context in contexts:
        hold_adapter(model.lora_manager, context)
        assert model.lora_manager is None or model.lora_manager.claim(context)
        model.kv_manager.external_claim(context)
        assert context.cache_length == 0, "the prefix cache was not empty"
    while batch := [context for context in contexts if not context.status.is_done]:
        for context in batch:
            context.set_chunk(min(chunk or context.num_pending, context.num_pending))
        assert all(model.kv_manager.maybe_reserve(context) for context in batch)
        inputs = model.prepare_initial_token_inputs(batch, model.kv_manager.fetch(batch))
        outputs = model.execute(inputs)
        offsets = outputs.logit_offsets.tolist()
        for i, context in enumerate(batch):
            rows[context.request_id].append(outputs.logits[offsets[i] : offsets[i + 1]])
            context.advance(0 if context.samples else None)
        model.kv_manager.step(batch)
        model.kv_manager.check_integrity()
    for context in contexts:
        model.kv_manager.release(context.request_id)
        if model.lora_manager is not None:
            model.lora_manager.release(context.request_id)
    model.kv_manager.reset_prefix_cache()
    assert model.kv_manager.num_free_pages == model.kv_manager.total_num_pages
    return [torch.cat(of_one) for of_one in rows.values()]
