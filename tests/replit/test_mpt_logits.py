"""Logits of the replit plugin: against transformers where it can express the config, else against `mpt_reference`."""

import json

import numpy as np
import pytest
import torch
from replit.mpt_reference import Reference
from safetensors.torch import save_file
from tiny_models import load_model, logits_of, randomize
from transformers import MptConfig, MptForCausalLM
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from pipezoo_core.errors import CheckpointMismatchError, InvalidSettingError
from pipezoo_core.layers import alibi_slopes
from pipezoo_replit.huggingface_config import in_one_spelling, read_huggingface_config
from pipezoo_replit.model import MptPipelineModel
from pipezoo_replit.weight_adapters import adapt_safetensors

pytestmark = pytest.mark.matrix

TINY = {"vocab_size": 99, "d_model": 48, "n_heads": 4, "n_layers": 3, "max_seq_len": 256}
PROMPTS = [[5, 9, 2, 7, 7, 1], list(range(1, 61)), [3], [(7 * i) % 99 for i in range(97)]]
# What transformers' model computes.
CONFIGS = {
    "default": {},
    "heads_not_a_power_of_two": {"n_heads": 6},
    "three_heads": {"n_heads": 3},
    "bias_max": {"attn_config": {"alibi_bias_max": 16}},
    "clip": {"attn_config": {"clip_qkv": 0.5}},
    "scale": {"attn_config": {"softmax_scale": 0.3}},
    "epsilon": {"layer_norm_epsilon": 0.1},
    "storywriter": {"attn_config": {"alibi_bias_max": 16, "clip_qkv": 1.0, "attn_pdrop": 0}},
    "untied": {"tie_word_embeddings": False},
    "unused": {"learned_pos_emb": True, "embedding_fraction": 0.5, "resid_pdrop": 0.1},
}
GROUPED = {"attn_type": "grouped_query_attention", "kv_n_heads": 2}
# What it leaves out.
LEFT_OUT = {
    "expansion_ratio": {"expansion_ratio": 2},
    "fractional_expansion_ratio": {"expansion_ratio": 2.5},
    "bias": {"no_bias": False},
    "norm_eps": {"norm_eps": 0.1},
    "logit_scale": {"logit_scale": 3},
    "logit_scale_of_zero": {"logit_scale": 0.0},
    "logit_scale_inverse_root": {"logit_scale": "inv_sqrt_d_model"},
    "integers_for_numbers": {"attn_config": {"clip_qkv": 1, "softmax_scale": 1}},
    "clip_of_zero": {"attn_config": {"clip_qkv": 0}},
    "qk_ln": {"attn_config": {"qk_ln": True}},
    "qk_ln_after_clip": {"no_bias": False, "attn_config": {"qk_ln": True, "clip_qkv": 0.5}},
    "learned_positions": {"attn_config": {"alibi": False}},
    "no_positions": {"learned_pos_emb": False, "attn_config": {"alibi": False}},
    "grouped": {"n_heads": 6, "attn_config": GROUPED},
    "grouped_and_clipped": {"attn_config": {**GROUPED, "clip_qkv": 0.5, "alibi_bias_max": 4}},
    "grouped_and_normalized": {"n_heads": 6, "attn_config": {**GROUPED, "qk_ln": True}},
    "multi_query": {"attn_config": {"attn_type": "multiquery_attention"}},
    "multi_query_normalized": {"no_bias": False, "attn_config": {"attn_type": "multiquery_attention", "qk_ln": True}},
    "everything": {
        "n_heads": 6,
        "no_bias": False,
        "norm_eps": 1e-3,
        "expansion_ratio": 3,
        "logit_scale": "inv_sqrt_d_model",
        "tie_word_embeddings": False,
        "attn_config": {**GROUPED, "qk_ln": True, "clip_qkv": 0.9, "softmax_scale": 0.4, "alibi": False},
    },
}
# Replit's first model: in its own names, and what that means in MPT's.
FLAT = {
    "default": (
        {"alibi": True, "no_bias": True},
        {"attn_config": {}},
    ),
    "left_out": (
        {},
        {"no_bias": False, "attn_config": {"alibi": False}},
    ),
    "six_heads": (
        {"n_heads": 6, "alibi": True, "alibi_bias_max": 16, "no_bias": True},
        {"n_heads": 6, "attn_config": {"alibi_bias_max": 16}},
    ),
    "everything": (
        {"attn_qk_ln": True, "attn_clip_qkv": 0.5, "mlp_ratio": 2, "softmax_scale": 0.3, "logit_scale": 2},
        {
            "no_bias": False,
            "expansion_ratio": 2,
            "logit_scale": 2,
            "attn_config": {"alibi": False, "qk_ln": True, "clip_qkv": 0.5, "softmax_scale": 0.3},
        },
    ),
}
MPT_NAMES = {".norm_1": ".ln_1", ".norm_2": ".ln_2", ".norm_f": ".ln_f", ".ffn.": ".mlp."}
MPT_NAMES |= {".up_proj": ".mlp_up", ".down_proj": ".mlp_down"}


def replit_name(name):
    for ours, theirs in MPT_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def make(**changes):
    reference = randomize(MptForCausalLM(MptConfig.from_dict({**TINY, **changes})))
    bias_max = reference.config.attn_config.alibi_bias_max

    def build(num_heads, length, *_, device=None):
        """transformers has the setting but does not pass it on; the original code does."""
        return build_mpt_alibi_tensor(num_heads, length, bias_max, device)

    reference.transformer.build_mpt_alibi_tensor = build
    return reference


def save(weights, folder):
    save_file({name: torch.tensor(values).float() for name, values in weights.items()}, folder / "model.safetensors")


def load(folder, raw):
    return load_model(MptPipelineModel, folder, read_huggingface_config(raw), adapt_safetensors)


def assert_equal_logits(model, expected_logits):
    for chunk in (None, 7, 1):
        for prompt, logits in zip(PROMPTS, logits_of(model, PROMPTS, chunk), strict=True):
            expected = expected_logits(prompt)
            assert (logits - expected).abs().max() < 1e-4
            assert torch.equal(logits.argmax(-1), expected.argmax(-1))


def by_reference(reference):
    logits = {tuple(prompt): torch.from_numpy(reference.logits(prompt)) for prompt in PROMPTS}
    return lambda prompt: logits[tuple(prompt)]


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name, tmp_path):
    reference = make(**CONFIGS[name])
    reference.save_pretrained(tmp_path)

    def expected(prompt):
        with torch.no_grad():
            return reference(torch.tensor([prompt])).logits[0]

    for raw in ({**TINY, **CONFIGS[name]}, json.loads((tmp_path / "config.json").read_text())):
        assert_equal_logits(load(tmp_path, raw), expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_reference_equals_transformers(name):
    """So that it can be trusted where transformers leaves something out."""
    raw = {**TINY, **CONFIGS[name]}
    theirs, ours = make(**CONFIGS[name]).double(), Reference(raw)
    ours.weights = {key: tensor.numpy() for key, tensor in theirs.state_dict().items()}
    assert set(Reference(raw).weights) - {"lm_head.weight"} == set(ours.weights) - {"lm_head.weight"}
    for prompt in PROMPTS:
        with torch.no_grad():
            expected = theirs(torch.tensor([prompt])).logits[0].numpy()
        # transformers takes the softmax in float32
        assert np.abs(ours.logits(prompt) - expected).max() < 1e-5


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_transformers_leaves_out_equals_the_reference(name, tmp_path):
    raw = {**TINY, **LEFT_OUT[name]}
    reference = Reference(raw)
    save(reference.weights, tmp_path)
    model = load(tmp_path, raw)
    assert model.kv_manager.params.groups[0].num_kv_heads == reference.num_kv_heads
    assert_equal_logits(model, by_reference(reference))


@pytest.mark.parametrize("name", FLAT)
def test_the_flat_spelling_equals_the_reference(name, tmp_path):
    flat, nested = FLAT[name]
    reference = Reference({**TINY, **nested, "model_type": "replit_lm"})
    save({replit_name(key): values for key, values in reference.weights.items()}, tmp_path)
    model = load(tmp_path, {**TINY, **flat, "model_type": "replit_lm"})
    assert_equal_logits(model, by_reference(reference))


def test_both_spellings_of_everything_mean_the_same():
    attention = {"qk_ln": True, "clip_qkv": 0.5, "softmax_scale": 0.3, "alibi": False, "prefix_lm": False}
    nested = {"attn_config": {**attention, "model_type": "", "dtype": None}, "ffn_config": None, "expansion_ratio": 2}
    flat = {"attn_qk_ln": True, "attn_clip_qkv": 0.5, "softmax_scale": 0.3, "alibi": False, "prefix_lm": False}
    assert in_one_spelling(nested) == in_one_spelling({**flat, "mlp_ratio": 2}) == {**attention, "expansion_ratio": 2}


def test_learned_positions_end_where_they_end(tmp_path):
    raw = {**TINY, "max_seq_len": 40, "attn_config": {"alibi": False}}
    reference = Reference(raw)
    save(reference.weights, tmp_path)
    model = load(tmp_path, raw)
    assert model.max_seq_len == 40
    prompt = PROMPTS[1][:40]
    [logits] = logits_of(model, [prompt])
    assert (logits - torch.from_numpy(reference.logits(prompt))).abs().max() < 1e-4
    with pytest.raises(InvalidSettingError, match="at most 40"):
        load_model(MptPipelineModel, tmp_path, read_huggingface_config(raw), adapt_safetensors, max_length=41)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attn_config": GROUPED}, "wrong shape: transformer.blocks.0.attn.Wqkv"),
        ({"attn_config": {"alibi": False}}, "missing: transformer.wpe.weight"),
        ({"attn_config": {"qk_ln": True}}, "missing: transformer.blocks.0.attn.k_ln.weight"),
        ({"no_bias": False}, "missing: transformer.blocks.0.attn.Wqkv.bias"),
        ({"tie_word_embeddings": False}, "missing: lm_head.weight"),
    ],
)
def test_weights_that_the_config_does_not_fit_are_refused(changes, message, tmp_path):
    save(Reference(TINY).weights, tmp_path)
    with pytest.raises(CheckpointMismatchError, match=message):
        load(tmp_path, {**TINY, **changes})


def test_slopes_of_the_docstring():
    assert alibi_slopes(3) == (2.0**-4, 2.0**-8, 2.0**-2)
    assert alibi_slopes(4) == (2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8)
    assert alibi_slopes(1) == (2.0**-8,)


@pytest.mark.parametrize("bias_max", [8, 16])
@pytest.mark.parametrize("num_heads", range(1, 34))
def test_slopes_equal_transformers(num_heads, bias_max):
    """Whose bias grows by one slope per key."""
    bias = build_mpt_alibi_tensor(num_heads, 2, bias_max)[:, 0]
    assert torch.allclose(bias[:, 1] - bias[:, 0], torch.tensor(alibi_slopes(num_heads, bias_max)), rtol=1e-6, atol=0)
