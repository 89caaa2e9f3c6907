"""Qwen3-Next and Qwen3.5 against transformers on the same weights, for everything that their configs can express."""

import json

import pytest
import torch
from families import (
    NATIVE,
    assert_adapters_equal_merged,
    assert_equal_greedy_tokens,
    assert_equal_logits,
    assert_equal_on_ranks,
    assert_matters,
    assert_replayed_as_eager,
    save,
)
from kernels_here import needs_kernels
from qwen.tiny_hybrid import ARCHITECTURES, CLASSES, EXPERTS, make, saved
from safetensors.torch import load_file, save_file
from tiny_models import load_model

from pipezoo import registry
from pipezoo_core.errors import InvalidSettingError, UnsupportedModelError
from pipezoo_core.request import TextGenerationRequest
from pipezoo_qwen.hybrid.config import QwenHybridConfig
from pipezoo_qwen.hybrid.weight_adapters import adapt_hybrid

pytestmark = pytest.mark.matrix

# Of logits up to 10. A norm makes what a recurrence returns of nearly nothing as large as the rest, so that the
# reference's float32 is up to 7e-4 off its own float64.
LIMIT = 1e-3
WIDE = {"head_dim": 32, "moe_intermediate_size": 32, "intermediate_size": 64}  # as the kernels of attention want it
ALL = {
    "default": {},
    "as_many_key_heads": {"linear_num_key_heads": 4},
    "one_key_head": {"linear_num_key_heads": 1},
    "wider_keys": {"linear_key_head_dim": 20, "linear_value_head_dim": 8},
    "two_taps": {"linear_conv_kernel_dim": 2},
    "multi_head": {"num_key_value_heads": 4},
    "attention_bias": {"attention_bias": True},
    "tied": {"tie_word_embeddings": True},
    "eps": {"rms_norm_eps": 0.1},
    "half_rotated": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    "attention_first": {"layer_types": ["full_attention", "linear_attention", "linear_attention"]},
}
QWEN3_NEXT = {
    "not_normalized": {"norm_topk_prob": False},
    "every_other_layer": {"decoder_sparse_step": 2},
    "plain_layers": {"mlp_only_layers": [0, 1]},
    "no_experts": {"num_experts": 0},
    "intervals": {"layer_types": None, "num_hidden_layers": 5},
}
QWEN3_5 = {
    "sections": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.5,
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
        }
    }
}
CONFIGS = {
    **{f"qwen3_next-{name}": ("qwen3_next", changes) for name, changes in {**ALL, **QWEN3_NEXT}.items()},
    **{f"qwen3_5_text-{name}": ("qwen3_5_text", changes) for name, changes in {**ALL, **QWEN3_5}.items()},
    "qwen3_5_moe_text-default": ("qwen3_5_moe_text", {}),
    "qwen3_5_moe_text-all_experts": ("qwen3_5_moe_text", {"num_experts_per_tok": 6}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name, tmp_path):
    family, changes = CONFIGS[name]
    reference = make(family, **changes)
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path), linear="torch"), limit=LIMIT)


@needs_kernels
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_of_native_kernels(name, tmp_path):
    family, changes = CONFIGS[name]
    reference = make(family, **{**WIDE, **changes})
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path), **NATIVE), limit=LIMIT)


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("name", ["eps", "half_rotated"])
def test_switches_matter(family, name):
    assert_matters(make(family), make(family, **ALL[name]))


@pytest.mark.parametrize(
    "family", ["qwen3_next", *(pytest.param(f, marks=pytest.mark.slow) for f in list(CLASSES)[1:])]
)
@pytest.mark.parametrize("linear", ["torch", pytest.param("native", marks=needs_kernels)])
def test_greedy_tokens_equal_transformers(family, linear, tiny_folder, tmp_path):
    reference = make(family)
    page = 8 * 2 * 2 * 16 * 4  # 8 tokens: keys and values of a layer, 2 heads of 16 numbers, in bytes per number
    folder = save(reference, tmp_path, tiny_folder)
    assert_equal_greedy_tokens(reference, folder, few_pages=16 * page, linear=linear)


@pytest.mark.parametrize("family", CLASSES)
def test_adapters_equal_merged_models(family, tmp_path):
    reference = make(family)
    targets = ["q_proj", "v_proj", "o_proj", "out_proj", *(
        ["in_proj_qkvz", "in_proj_ba"] if family == "qwen3_next" else ["in_proj_qkv", "in_proj_z", "in_proj_a"]
    )]  # fmt: skip
    model = saved(reference, tmp_path / "model")
    others = ["k_proj", "q_proj"]
    assert_adapters_equal_merged(reference, model, tmp_path, targets=targets, target_modules=others, limit=LIMIT)


@needs_kernels
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", CLASSES)
def test_replayed_steps_are_those_of_the_module(family, dtype, tiny_folder, tmp_path):
    """The sigmoids of torch and of kernels differ in the last place, which bfloat16 has no room for."""
    folder = save(make(family, **WIDE), tmp_path, tiny_folder)
    assert_replayed_as_eager(folder, dtype, limit=1e-4 if dtype == "float32" else 0.0)


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_it_answers(family, dtype, tiny_folder, tmp_path):
    folder = save(make(family, **WIDE), tmp_path, tiny_folder)
    with registry.load(folder, dtype=dtype, device="cpu", kv_cache_memory="8MiB") as llm:
        (output,) = llm.generate(TextGenerationRequest(prompt=[5, 9]), max_new_tokens=5, ignore_eos=True)
        assert len(output.tokens) == 5


@pytest.mark.slow
@pytest.mark.parametrize("family", CLASSES)
def test_several_devices_divide_a_model_without_states(family, tmp_path):
    reference = make(family, layer_types=["full_attention"] * 3, attention_bias=True)
    assert_equal_on_ranks(reference, saved(reference, tmp_path / "model"), tmp_path, limit=LIMIT)


def test_several_devices_are_refused(tiny_folder, tmp_path):
    folder = save(make("qwen3_next"), tmp_path, tiny_folder)
    with pytest.raises(InvalidSettingError, match="computed on one device"):
        registry.plan(folder, devices=["cpu", "cpu"])


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"linear_num_key_heads": 3, "linear_num_value_heads": 4}, "3 key heads"),
        ({"linear_conv_kernel_dim": 0}, "a convolution over 0"),
        ({"layer_types": ["sliding_attention"] * 3}, "what its layers can be"),
        ({"hidden_act": "gelu"}, "activation function"),
        ({"num_experts": 2, "num_experts_per_tok": 3}, "experts cannot be chosen"),
        *(
            ({"full_attention_interval": interval}, "full_attention_interval")
            for interval in (0, -4, None, "4", 4.0, True)
        ),
    ],
    ids=str,
)
def test_refused(said, why):
    values = {**EXPERTS, "num_hidden_layers": 3, **said}
    with pytest.raises(UnsupportedModelError, match=why):
        QwenHybridConfig.from_huggingface(ARCHITECTURES["qwen3_next"].huggingface_config(values))


def test_a_dense_model_whose_config_says_a_number_of_experts():
    """It comes with what a config's writer took from the one of the others; the class has none."""
    for said in ({**EXPERTS}, {"num_experts": 0}):
        config = ARCHITECTURES["qwen3_5"].huggingface_config({"text_config": {**said, "num_hidden_layers": 3}})
        assert QwenHybridConfig.from_huggingface(config).mixture is None


@pytest.mark.parametrize("family", ["qwen3_5_text", "qwen3_5_moe_text"])
def test_the_text_part_of_a_model_that_also_sees(family, tmp_path):
    """Its config says so in a part of its own, and its checkpoint calls the text part so, and predicts tokens ahead."""
    reference = make(family)
    saved(reference, tmp_path)
    named = {name.replace("model.", "model.language_model.", 1): tensor
             for name, tensor in load_file(tmp_path / "model.safetensors").items()}  # fmt: skip
    others = {f"{name}.weight": torch.zeros(2) for name in ("model.visual.patch_embed.proj", "mtp.fc")}
    save_file({**named, **others}, tmp_path / "model.safetensors")
    text = json.loads((tmp_path / "config.json").read_text())
    whole = {"model_type": family.removesuffix("_text"), "text_config": text, "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    architecture = ARCHITECTURES[whole["model_type"]]
    model = architecture.pipeline_model, tmp_path, architecture.huggingface_config(whole), adapt_hybrid
    assert_equal_logits(reference, load_model(*model), limit=LIMIT)
