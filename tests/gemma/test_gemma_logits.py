"""Gemma, Gemma 2 and 3 against transformers on the same weights, for everything that their configs can express."""

import pytest
import torch
from families import (
    NATIVE,
    assert_adapters_equal_merged,
    assert_equal_greedy_tokens,
    assert_equal_logits,
    assert_equal_on_ranks,
    assert_matters,
    save,
    why_not_replayed,
)
from gguf_files import TOKENS
from tiny_models import TINY_LLAMA, load_model, randomize
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
)

from pipezoo_core.native import NativeKernels
from pipezoo_gemma.model import GemmaPipelineModel
from pipezoo_gemma.weight_adapters import adapt_safetensors

HAS_KERNELS = NativeKernels(torch.device("cpu"), torch.float32).obstacle is None
needs_kernels = pytest.mark.skipif(not HAS_KERNELS, reason="pipezoo-kernels cannot be used here")
CLASSES = {
    "gemma": (GemmaConfig, GemmaForCausalLM),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
}
WINDOWED = ("gemma2", "gemma3")
MIXED = ["full_attention", "sliding_attention", "sliding_attention"]
ALL = {
    "default": {},
    "head_dim": {"head_dim": 20},
    "multi_head": {"num_key_value_heads": 4},
    "multi_query": {"num_key_value_heads": 1},
    "untied": {"tie_word_embeddings": False},
    "attention_bias": {"attention_bias": True},
    "eps": {"rms_norm_eps": 0.1},
}
OF_WINDOWED = {
    "activation": {"hidden_activation": "silu"},
    "scale": {"query_pre_attn_scalar": 3},
    "wide": {"sliding_window": 1000},
    "one_token": {"sliding_window": 1},
    "layer_types": {"layer_types": MIXED},
    "all_windowed": {"layer_types": ["sliding_attention"] * 3},
    "none_windowed": {"layer_types": ["full_attention"] * 3},
    "logit_softcap": {"final_logit_softcapping": 2.0},
    "no_logit_softcap": {"final_logit_softcapping": None},
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES = {
    "theta": {"rope_type": "default", "rope_theta": 100.0},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    "llama3": {**LLAMA3, "rope_theta": 1e4, "original_max_position_embeddings": 64},
    "yarn": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64},
    "proportional": {"rope_type": "proportional", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.5, 2.0, 2.0, 3.0, 3.0, 4.0, 4.5],
    "long_factor": [2.0, 2.5, 3.0, 5.0, 6.0, 8.0, 8.0, 9.0],
    "original_max_position_embeddings": 64,
    "factor": 4.0,
}
LENGTH = {"max_position_embeddings": 64}  # shorter than a prompt, which matters to dynamic RoPE


def by_kind(rope):
    """What a Gemma 3's config says where only the layers that see all are stretched."""
    return {"full_attention": dict(rope), "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}}


CONFIGS = {f"{family}-{name}": (family, changes) for family in CLASSES for name, changes in ALL.items()}
CONFIGS |= {f"{family}-{name}": (family, changes) for family in WINDOWED for name, changes in OF_WINDOWED.items()}
CONFIGS |= {
    f"{family}-{name}": (family, {**LENGTH, "rope_parameters": by_kind(rope) if family == "gemma3" else rope})
    for family in CLASSES
    for name, rope in ROPES.items()
}
CONFIGS |= {
    "gemma-activation": ("gemma", {"hidden_act": "relu"}),
    "gemma-gelu": ("gemma", {"hidden_act": "gelu"}),
    "gemma2-softcap": ("gemma2", {"attn_logit_softcapping": 0.5}),
    "gemma2-no_softcap": ("gemma2", {"attn_logit_softcapping": None}),
    "gemma3-pattern": ("gemma3", {"sliding_window_pattern": 2}),
    "gemma3-local_rope": ("gemma3", {"rope_parameters": dict.fromkeys(MIXED, ROPES["yarn"])}),
}


def make(family, **changes):
    config_class, model_class = CLASSES[family]
    own = {"sliding_window": 12, "layer_types": MIXED[::-1], "query_pre_attn_scalar": 16} if family in WINDOWED else {}
    if "sliding_window_pattern" in changes:
        del own["layer_types"]
    values = {**TINY_LLAMA, "vocab_size": len(TOKENS), "attn_implementation": "eager", "head_dim": 16, **own, **changes}
    return randomize(model_class(config_class(**values)))


def saved(reference, folder):
    """What `load_model` takes."""
    reference.save_pretrained(folder)
    return GemmaPipelineModel, folder, reference.config, adapt_safetensors


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name, tmp_path):
    family, changes = CONFIGS[name]
    reference = make(family, **changes)
    # transformers' dynamic RoPE goes by the tokens so far: it computes whole prompts only as we do
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path)))


@needs_kernels
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_of_native_kernels(name, tmp_path):
    family, changes = CONFIGS[name]
    reference = make(family, **{**changes, "head_dim": 32})
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path), **NATIVE))


@pytest.mark.parametrize("family", CLASSES)
def test_plain_torch(family, tmp_path):
    reference = make(family)
    model = load_model(*saved(reference, tmp_path), attention="reference", linear="torch")
    assert_equal_logits(reference, model, chunks=(7,))
