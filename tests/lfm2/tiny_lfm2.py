"""Tiny random LFM2 models, made by transformers."""

from gguf_files import TOKENS
from tiny_models import TINY_LLAMA, randomize
from transformers import Lfm2Config, Lfm2ForCausalLM, Lfm2MoeConfig, Lfm2MoeForCausalLM

MIXED = ["conv", "full_attention", "conv"]
VALUES = {
    **TINY_LLAMA,
    "vocab_size": len(TOKENS),
    "attn_implementation": "eager",
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "layer_types": MIXED,
    "pad_token_id": None,
}
EXPERTS = {"moe_intermediate_size": 32, "num_dense_layers": 1, "num_experts": 6, "num_experts_per_tok": 2}


def make(**changes):
    """A model whose heads have 32 numbers, as the kernels want them."""
    return randomize(Lfm2ForCausalLM(Lfm2Config(**{**VALUES, "block_multiple_of": 8, **changes})))


def make_moe(**changes):
    """The same with experts in all layers but the first one; their corrections matter for the choice."""
    model = randomize(Lfm2MoeForCausalLM(Lfm2MoeConfig(**{**VALUES, **EXPERTS, **changes})))
    for name, buffer in model.named_buffers():
        if name.endswith(".expert_bias"):
            buffer.copy_(buffer.new_tensor([0.3, -0.2, 0.1, 0.0, -0.4, 0.2])[: len(buffer)])
    return model
