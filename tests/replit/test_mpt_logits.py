"""Logits of the replit plugin against transformers on the same weights, and what it refuses."""

import json

import pytest
import torch
from tiny_models import load_model, logits_of, randomize
from transformers import MptConfig, MptForCausalLM
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from pipezoo import registry
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.layers import alibi_slopes
from pipezoo_replit.model import MptPipelineModel
from pipezoo_replit.weight_adapters import adapt_safetensors

TINY = {"vocab_size": 99, "d_model": 48, "n_heads": 4, "n_layers": 3, "max_seq_len": 256}
CONFIGS = {
    "default": {},
    "heads_not_a_power_of_two": {"n_heads": 6},
    "three_heads": {"n_heads": 3},
    "bias_max": {"attn_config": {"alibi_bias_max": 16}},
    "clip": {"attn_config": {"clip_qkv": 0.5}},
    "scale": {"attn_config": {"softmax_scale": 0.3}},
}
PROMPTS = [[5, 9, 2, 7, 7, 1], list(range(1, 61)), [3], [(7 * i) % 99 for i in range(97)]]


def make(**changes):
    model = randomize(MptForCausalLM(MptConfig(**{**TINY, **changes})))
    bias_max = model.config.attn_config.alibi_bias_max

    def build(num_heads, length, *_, device=None):
        """transformers has the setting but does not pass it on; the original code does."""
        return build_mpt_alibi_tensor(num_heads, length, bias_max, device)

    model.transformer.build_mpt_alibi_tensor = build
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name, tmp_path):
    reference = make(**CONFIGS[name])
    reference.save_pretrained(tmp_path)
    model = load_model(MptPipelineModel, tmp_path, reference.config, adapt_safetensors)
    for chunk in (None, 7, 1):
        for prompt, logits in zip(PROMPTS, logits_of(model, PROMPTS, chunk), strict=True):
            with torch.no_grad():
                expected = reference(torch.tensor([prompt])).logits[0]
            assert (logits - expected).abs().max() < 1e-4
            assert torch.equal(logits.argmax(-1), expected.argmax(-1))


def test_slopes_of_the_docstring():
    assert alibi_slopes(3) == (2.0**-4, 2.0**-8, 2.0**-2)
    assert alibi_slopes(4) == (2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8)
    assert alibi_slopes(1) == (2.0**-8,)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"no_bias": False}, "biases"),
        ({"expansion_ratio": 2}, "expansion ratio"),
        ({"logit_scale": "inv_sqrt_d_model"}, "logit scale"),
        ({"tie_word_embeddings": False}, "head of its own"),
        ({"attn_config": {"alibi": False}}, "learned positions"),
        ({"attn_config": {"kv_n_heads": 2}}, "grouped"),
        ({"attn_config": {"attn_type": "multiquery_attention"}}, "multi-head"),
        ({"attn_config": {"qk_ln": True}}, "normalized"),
        ({"attn_config": {"prefix_lm": True}}, "prefix"),
    ],
)
def test_what_it_does_not_compute_is_refused(changes, reason, tmp_path):
    config = {"model_type": "mpt", "architectures": ["MPTForCausalLM"], **TINY, **changes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=reason):
        registry.resolve(tmp_path)


@pytest.mark.parametrize("name", ["MPTForCausalLM", "MptForCausalLM"])
def test_both_names_are_served(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mpt", "architectures": [name], **TINY}))
    assert registry.resolve(tmp_path).architecture.name == name
