"""LFM2 with experts against transformers on the same weights, for everything that its configs can express."""

import json
from copy import deepcopy

import pytest
import torch
from families import (
    NATIVE,
    assert_adapters_equal_merged,
    assert_equal_greedy_tokens,
    assert_equal_logits,
    assert_matters,
    assert_replayed_as_eager,
    save,
)
from kernels_here import needs_kernels
from lfm2.tiny_lfm2 import MIXED, make_moe
from safetensors.torch import save_file
from tiny_models import load_model
from transformers import Lfm2MoeConfig
from transformers.models.lfm2_moe.modeling_lfm2_moe import Lfm2MoeTopKRouter

from pipezoo import registry
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_lfm2.config import Lfm2Config
from pipezoo_lfm2.huggingface_config import Lfm2MoeHuggingFaceConfig
from pipezoo_lfm2.model import Lfm2PipelineModel
from pipezoo_lfm2.weight_adapters import adapt_safetensors

PAGE = 8 * 2 * 1 * 1 * 4 * 32  # the bytes of 8 tokens: keys and values of 1 layer, 1 head of 32 numbers
CONFIGS = {
    "default": {},
    "no_correction": {"use_expert_bias": False},
    "as_they_are": {"norm_topk_prob": False},
    "scaled": {"routed_scaling_factor": 2.5},
    "one_expert": {"num_experts_per_tok": 1},
    "all_experts": {"num_experts_per_tok": 6},
    "all_layers": {"num_dense_layers": 0},
    "no_layer": {"num_dense_layers": 3},
    "untied": {"tie_word_embeddings": False},
    "bias": {"conv_bias": True, "conv_L_cache": 4},
    "attention_first": {"layer_types": ["full_attention", "conv", "conv"], "norm_eps": 0.5},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
}


def saved(reference, folder):
    """What `load_model` takes, the config read from its file as the registry does."""
    reference.save_pretrained(folder)
    config = Lfm2MoeHuggingFaceConfig.from_dict(json.loads((folder / "config.json").read_text()))
    return Lfm2PipelineModel, folder, config, adapt_safetensors


@pytest.mark.matrix
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name, tmp_path):
    reference = make_moe(**CONFIGS[name])
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path), linear="torch"), chunks=(None, 7))


@needs_kernels
@pytest.mark.matrix
@pytest.mark.parametrize("name", ["default", "as_they_are", "scaled", "all_layers"])
def test_logits_of_native_kernels(name, tmp_path):
    reference = make_moe(**CONFIGS[name])
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path), **NATIVE))


@pytest.mark.matrix
@pytest.mark.parametrize("name", ["no_correction", "as_they_are", "scaled", "one_expert"])
def test_switches_matter(name):
    assert_matters(make_moe(), make_moe(**CONFIGS[name]))


@torch.inference_mode()
def test_what_is_added_to_the_sum_of_small_scores():
    values = {"hidden_size": 6, "num_experts": 6, "num_experts_per_tok": 2, "use_expert_bias": False}
    said = {**values, "layer_types": MIXED, "num_hidden_layers": 3, "num_attention_heads": 1, "num_key_value_heads": 1}
    router = Lfm2MoeTopKRouter(Lfm2MoeConfig(**said))
    router.weight.copy_(torch.eye(6))
    logits, weights, indices = router(torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) - 16)
    assert weights.sum(-1).max() < 0.95
    found, found_weights = ours(said).mixture.routing(logits)
    assert torch.equal(found, indices)
    torch.testing.assert_close(found_weights, weights, atol=0, rtol=1e-5)


@pytest.mark.matrix
@pytest.mark.parametrize("is_stacked", [True, False])
def test_experts_by_either_name(is_stacked, tmp_path):
    """All of a layer are one tensor, or each is three, as they were published."""
    reference = make_moe()
    model, found = saved(reference, tmp_path), {}
    for name, tensor in reference.state_dict().items():
        if is_stacked or not name.endswith((".experts.gate_up_proj", ".experts.down_proj")):
            found[name] = tensor.clone()
            continue
        place, _, kind = name.rpartition(".")
        for number, each in enumerate(tensor):
            parts = zip(("w1", "w3"), each.chunk(2), strict=True) if kind == "gate_up_proj" else [("w2", each)]
            found |= {f"{place}.{number}.{part}.weight": rows.clone() for part, rows in parts}
    del found["lm_head.weight"]
    save_file(found, tmp_path / "model.safetensors")
    assert any(".experts.0.w1." in name for name in found) != is_stacked
    assert_equal_logits(reference, load_model(*model, linear="torch"), chunks=(None,))


@pytest.mark.matrix
@pytest.mark.parametrize("linear", ["torch", pytest.param("native", marks=needs_kernels)])
def test_greedy_tokens_equal_transformers(linear, tiny_folder, tmp_path):
    reference = make_moe()
    folder = save(reference, tmp_path, tiny_folder)
    assert_equal_greedy_tokens(reference, folder, few_pages=16 * PAGE, linear=linear)


@pytest.mark.matrix
def test_adapters_equal_merged_models(tmp_path):
    reference = make_moe()
    model = saved(reference, tmp_path / "model")
    experts = [f"feed_forward.experts.{layer}" for layer in ("gate_up_proj", "down_proj")]
    others = {"target_modules": ["q_proj", "in_proj"], "target_parameters": experts}
    targets = ["q_proj", "v_proj", "in_proj", "w1", "w2"]
    assert_adapters_equal_merged(reference, model, tmp_path, targets=targets, **others)


@needs_kernels
@pytest.mark.matrix
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_replayed_steps_are_those_of_the_module(dtype, tiny_folder, tmp_path):
    assert_replayed_as_eager(save(make_moe(), tmp_path, tiny_folder), dtype)


def ours(raw):
    return Lfm2Config.from_huggingface(Lfm2MoeHuggingFaceConfig.from_dict(deepcopy(raw)))


PUBLISHED = {  # as the checkpoint's config.json, cut to what matters
    "architectures": ["Lfm2MoeForCausalLM"],
    "conv_L_cache": 3,
    "hidden_size": 2048,
    "intermediate_size": 7168,
    "layer_types": ["conv", "conv", *["full_attention", "conv", "conv", "conv"] * 5, "full_attention", "conv"],
    "max_position_embeddings": 128000,
    "model_type": "lfm2_moe",
    "moe_intermediate_size": 1792,
    "norm_eps": 1e-05,
    "num_attention_heads": 32,
    "num_dense_layers": 2,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "rope_theta": 1000000.0,
    "vocab_size": 65536,
}


def test_config_of_a_checkpoint(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    resolution = registry.resolve(tmp_path)
    assert (resolution.plugin.distribution, resolution.plugin.name) == ("pipezoo-lfm2", "lfm2_moe")
    config = ours(PUBLISHED)
    assert (config.intermediate_size, config.head_dim, config.rope_parameters["rope_theta"]) == (7168, 64, 1e6)
    assert [i for i, has_attention in enumerate(config.has_attention) if has_attention] == [2, 6, 10, 14, 18, 22]
    assert (config.mixture.num_dense_layers, config.mixture.expert_size) == (2, 1792)
    assert config.mixture.has_correction


@pytest.mark.parametrize(
    "said",
    [
        PUBLISHED,
        {"layer_types": MIXED, "num_hidden_layers": 3, "tie_embedding": False, "use_expert_bias": False},
        {"layer_types": MIXED, "num_hidden_layers": 3, "norm_topk_prob": False, "routed_scaling_factor": 2.5},
    ],
    ids=range(3),
)
def test_configs_are_read_as_transformers_reads_them(said):
    assert ours(said) == Lfm2Config.from_huggingface(Lfm2MoeConfig.from_dict(deepcopy(said)))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"layer_types": None}, "does not say which layers have attention"),
        ({"layer_types": ["conv", "sliding_attention"], "num_hidden_layers": 2}, "sliding_attention"),
        ({"conv_L_cache": 1}, "conv_L_cache is too small"),
        ({"num_experts_per_tok": 33}, "33 of 32 experts"),
        ({"num_experts": 0}, "4 of 0 experts"),
        ({"moe_intermediate_size": 0}, "moe_intermediate_size is not positive"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 9.0, "partial_rotary_factor": 0.5}}, "part"),
    ],
    ids=str,
)
def test_what_is_refused(said, message):
    with pytest.raises(UnsupportedModelError, match=message):
        ours({**PUBLISHED, **said})
