"""The plugins' config classes against those of transformers, which they stand in for."""

from dataclasses import fields

import pytest
import torch
import transformers
from transformers.activations import ACT2FN

from pipezoo_core.layers import ACTIVATIONS
from pipezoo_llama.config import LlamaConfig
from pipezoo_llama.huggingface_config import LlamaHuggingFaceConfig
from pipezoo_mistral.config import MistralConfig
from pipezoo_mistral.huggingface_config import MistralHuggingFaceConfig
from pipezoo_qwen.config import QwenConfig
from pipezoo_qwen.huggingface_config import (
    Qwen2HuggingFaceConfig,
    Qwen2MoeHuggingFaceConfig,
    Qwen3HuggingFaceConfig,
    Qwen3MoeHuggingFaceConfig,
)
from pipezoo_qwen.hybrid.config import QwenHybridConfig
from pipezoo_qwen.hybrid.huggingface_config import Qwen3NextHuggingFaceConfig, Qwen35HuggingFaceConfig

CLASSES = [
    (LlamaHuggingFaceConfig, transformers.LlamaConfig, LlamaConfig),
    (MistralHuggingFaceConfig, transformers.MistralConfig, MistralConfig),
    (Qwen2HuggingFaceConfig, transformers.Qwen2Config, QwenConfig),
    (Qwen3HuggingFaceConfig, transformers.Qwen3Config, QwenConfig),
    (Qwen2MoeHuggingFaceConfig, transformers.Qwen2MoeConfig, QwenConfig),
    (Qwen3MoeHuggingFaceConfig, transformers.Qwen3MoeConfig, QwenConfig),
    (Qwen3NextHuggingFaceConfig, transformers.Qwen3NextConfig, QwenHybridConfig),
    (Qwen35HuggingFaceConfig, transformers.Qwen3_5TextConfig, QwenHybridConfig),
]
SAID = [
    {},
    {"eos_token_id": [2, 7]},
    {"num_key_value_heads": 4, "head_dim": 80, "torch_dtype": "bfloat16", "tie_word_embeddings": True},
    {"rope_theta": 500000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
    {"full_attention_interval": 3},
    {"rope_theta": 500000.0, "rope_scaling": None, "pretraining_tp": 1, "attention_dropout": 0.0},
    {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 2.0}, "max_position_embeddings": 4096},
    {
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
]


@pytest.mark.parametrize(("ours", "theirs", "typed"), CLASSES, ids=lambda value: getattr(value, "model_type", ""))
@pytest.mark.parametrize("said", SAID)
def test_says_what_transformers_says(said, ours, theirs, typed):
    mine, reference = ours.from_dict(dict(said)), theirs.from_dict(dict(said))
    assert typed.from_huggingface(mine) == typed.from_huggingface(reference)
    for field in fields(ours):
        assert getattr(mine, field.name) == getattr(reference, field.name), field.name


@pytest.mark.parametrize(("ours", "theirs", "typed"), CLASSES[:2], ids=["llama", "mistral"])
def test_a_head_without_a_size_has_its_share_of_the_hidden_state(ours, theirs, typed):
    said = {"head_dim": None, "hidden_size": 96, "num_attention_heads": 8}
    assert typed.from_huggingface(ours.from_dict(said)).head_dim == 12
    assert typed.from_huggingface(theirs.from_dict(said)).head_dim == 12


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activation(name):
    x = torch.linspace(-8, 8, 1001)
    torch.testing.assert_close(ACTIVATIONS[name](x), ACT2FN[name](x))
