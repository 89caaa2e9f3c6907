"""LFM2 against transformers on the same weights, for everything that its configs can express."""

import pytest
from families import (
    NATIVE,
    assert_adapters_equal_merged,
    assert_equal_greedy_tokens,
    assert_equal_logits,
    assert_equal_on_ranks,
    assert_matters,
    assert_near_logits,
    save,
    why_not_replayed,
)
from kernels_here import needs_kernels
from lfm2.tiny_lfm2 import make
from tiny_models import load_model

from pipezoo import registry
from pipezoo_core.config import SupportedEncoding
from pipezoo_core.errors import InvalidSettingError
from pipezoo_lfm2.model import Lfm2PipelineModel
from pipezoo_lfm2.weight_adapters import adapt_safetensors

pytestmark = pytest.mark.matrix

CONFIGS = {
    "default": {},
    "multi_head": {"num_key_value_heads": 2},
    "untied": {"tie_word_embeddings": False},
    "eps": {"norm_eps": 0.5},
    "two_taps": {"conv_L_cache": 2},
    "five_taps": {"conv_L_cache": 5},
    "bias": {"conv_bias": True},
    "not_adjusted": {"block_auto_adjust_ff_dim": False},
    "multiplier": {"block_ffn_dim_multiplier": 1.7},
    "multiple": {"block_multiple_of": 64},
    "all_attention": {"layer_types": None},
    "indices": {"layer_types": None, "full_attn_idxs": [0]},
    "attention_first": {"layer_types": ["full_attention", "conv", "conv"]},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
}


def saved(reference, folder):
    """What `load_model` takes."""
    reference.save_pretrained(folder)
    return Lfm2PipelineModel, folder, reference.config, adapt_safetensors


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name, tmp_path):
    reference = make(**CONFIGS[name])
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path)), chunks=(None, 7, 1))


@needs_kernels
@pytest.mark.parametrize("name", ["default", "five_taps", "bias"])
def test_logits_of_native_kernels(name, tmp_path):
    reference = make(**CONFIGS[name])
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path), **NATIVE))


@needs_kernels
@pytest.mark.parametrize(("encoding", "most"), [("bfloat16", 0.06), ("int8", 0.15)])
def test_lower_precision_is_near(encoding, most, tmp_path):
    reference = make()
    model = load_model(*saved(reference, tmp_path), **NATIVE, encoding=SupportedEncoding(encoding))
    assert_near_logits(reference, model, most)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("default", "multi_head", "untied")])
def test_switches_matter(name):
    reference, other = make(), make(**CONFIGS[name])
    if [p.shape for p in reference.parameters()] == [p.shape for p in other.parameters()]:
        assert_matters(reference, other)


PAGE = 8 * 2 * 1 * 1 * 4 * 32  # the bytes of 8 tokens: keys and values of 1 layer, 1 head of 32 numbers


def test_greedy_tokens_equal_transformers(tiny_folder, tmp_path):
    reference = make(conv_bias=True)
    assert_equal_greedy_tokens(reference, save(reference, tmp_path, tiny_folder), few_pages=16 * PAGE)


@needs_kernels
def test_greedy_tokens_of_kernels(tiny_folder, tmp_path):
    reference = make()
    folder = save(reference, tmp_path, tiny_folder)
    assert why_not_replayed(folder, dtype="float32") is None
    assert_equal_greedy_tokens(reference, folder, few_pages=4 * 4 * PAGE, page_size=32)


def test_adapters_equal_merged_models(tmp_path):
    reference = make()
    model = saved(reference, tmp_path / "model")
    assert_adapters_equal_merged(reference, model, tmp_path, target_modules=["q_proj", "in_proj", "w2"])


@pytest.mark.slow
def test_several_devices_divide_a_model_without_states(tmp_path):
    reference = make(layer_types=None, num_attention_heads=4, num_key_value_heads=2)
    assert_equal_on_ranks(reference, saved(reference, tmp_path / "model"), tmp_path)


@pytest.mark.parametrize(
    "settings",
    [pytest.param({"devices": ["cpu", "cpu"]}, marks=pytest.mark.slow), {"speculative": "lookup"}],
    ids=["devices", "drafts"],
)
def test_what_states_do_not_allow_is_refused(settings, tiny_folder, tmp_path):
    folder = save(make(), tmp_path, tiny_folder)
    with pytest.raises(InvalidSettingError, match="keep a state"):
        registry.load(folder, dtype="float32", kv_cache_memory="1MiB", **settings)
