"""Nemotron-H against transformers on the same weights, for everything that its configs can express."""

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
from nemotron.tiny_nemotron import make, saved
from safetensors.torch import load_file, save_file
from tiny_models import load_model

from pipezoo import registry
from pipezoo_core.errors import InvalidSettingError
from pipezoo_core.request import TextGenerationRequest

pytestmark = pytest.mark.matrix

NO_STATE = {"layers_block_type": ["full_attention", "mlp", "moe", "full_attention"]}
CONFIGS = {
    "default": {},
    "no_experts": {"layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp"]},
    "no_state": NO_STATE,
    "ends": {"layers_block_type": ["mlp", "moe", "full_attention", "linear_attention", "full_attention", "moe", "mlp"]},
    "mixers_in_a_row": {"layers_block_type": ["full_attention", "linear_attention", "linear_attention"]},
    "multi_head": {"num_attention_heads": 2, "num_key_value_heads": 2},
    "eps": {"layer_norm_epsilon": 0.1},
    "one_group": {"n_groups": 1},
    "a_group_for_each_head": {"n_groups": 8},
    "wider_states": {"ssm_state_size": 40, "mamba_num_heads": 4, "mamba_head_dim": 24},
    "two_taps": {"conv_kernel": 2},
    "no_conv_bias": {"use_conv_bias": False},
    "use_bias": {"use_bias": True},
    "mlp_bias": {"mlp_bias": True, "moe_latent_size": 24},
    "shortest_step": {"time_step_min": 0.7},
    "activation": {"mlp_hidden_act": "gelu_pytorch_tanh"},
    "activation_in_torch": {"mlp_hidden_act": "mish"},
    "latent": {"moe_latent_size": 24},
    "odd_experts": {"moe_intermediate_size": 39, "moe_latent_size": 27},
    "narrow_experts": {"moe_intermediate_size": 6},
    "shared_as_mlp": {"moe_shared_expert_intermediate_size": 0},
    "one_group_of_experts": {"n_group": 1},
    "more_groups": {"n_group": 4, "topk_group": 2},
    "no_normalization": {"norm_topk_prob": False},
    "scale": {"routed_scaling_factor": 1},
    "one_expert": {"num_experts_per_tok": 1},
    "without_effect": {"residual_in_fp32": True, "attention_bias": True, "sliding_window": 5, "expand": 7,
                       "mamba_proj_bias": True, "n_shared_experts": 3, "num_nextn_predict_layers": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name, tmp_path):
    reference, chunks = make(**CONFIGS[name]), (None, 7, 1) if name == "default" else (None, 7)
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path), linear="torch"), chunks=chunks)


@needs_kernels
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_of_native_kernels(name, tmp_path):
    reference = make(**CONFIGS[name])
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path), **NATIVE))


@pytest.mark.parametrize(
    "name", ["eps", "shortest_step", "activation", "one_group_of_experts", "no_normalization", "scale"]
)
def test_switches_matter(name):
    assert_matters(make(), make(**CONFIGS[name]))


def test_head_that_is_the_embedding(tmp_path):
    """transformers reads and writes both, whatever the config says."""
    reference = make(tie_word_embeddings=True)
    reference.lm_head.weight.data = reference.model.embeddings.weight.data.clone()
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path), linear="torch"), chunks=(None,))


def test_names_of_the_module(tmp_path):
    """One tensor of all experts, where files have many; and layers that predict further tokens."""
    reference = make()
    model = saved(reference, tmp_path)
    assert "backbone.layers.1.mixer.experts.7.up_proj.weight" in load_file(tmp_path / "model.safetensors")
    tensors = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    assert "model.layers.1.mixer.experts.up_proj" in tensors
    save_file({**tensors, "mtp.layers.0.norm.weight": torch.ones(64)}, tmp_path / "model.safetensors")
    assert_equal_logits(reference, load_model(*model, linear="torch"), chunks=(None,))


@pytest.mark.parametrize("linear", ["torch", pytest.param("native", marks=needs_kernels)])
def test_greedy_tokens_equal_transformers(linear, tiny_folder, tmp_path):
    """Of a model that has a head of its own, whatever its config says."""
    reference = make(moe_latent_size=24, tie_word_embeddings=True)
    page = 8 * 2 * 1 * 32 * 4  # 8 tokens: keys and values of a layer, a head of 32 numbers, in bytes per number
    folder = save(reference, tmp_path, tiny_folder)
    assert_equal_greedy_tokens(reference, folder, few_pages=16 * page, linear=linear)


def test_adapters_equal_merged_models(tmp_path):
    """PEFT passes over a parameter that the experts lack, here `gate_up_proj`."""
    reference = make(moe_latent_size=24)
    names = [
        "q_proj",
        "v_proj",
        "o_proj",
        "in_proj",
        "up_proj",
        "down_proj",
        "fc1_latent_proj",
    ]  # PEFT takes no out_proj
    model = saved(reference, tmp_path / "model")
    experts = [f"mixer.experts.{layer}" for layer in ("gate_up_proj", "up_proj", "down_proj")]
    others = {"target_modules": ["k_proj", "in_proj"], "target_parameters": experts}
    assert_adapters_equal_merged(reference, model, tmp_path, targets=names, **others)


@needs_kernels
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_replayed_steps_are_those_of_the_module(dtype, tiny_folder, tmp_path):
    folder = save(make(moe_latent_size=24), tmp_path, tiny_folder)
    assert_replayed_as_eager(folder, dtype, limit=1e-4 if dtype == "float32" else 0.0)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_it_answers(dtype, tiny_folder, tmp_path):
    folder = save(make(), tmp_path, tiny_folder)
    with registry.load(folder, dtype=dtype, device="cpu", kv_cache_memory="8MiB") as llm:
        (output,) = llm.generate(TextGenerationRequest(prompt=[5, 9]), max_new_tokens=5, ignore_eos=True)
        assert len(output.tokens) == 5


def test_several_devices(tiny_folder, tmp_path):
    """They divide a model without states, and are refused for others."""
    reference = make(**NO_STATE, num_attention_heads=4, num_key_value_heads=2)
    assert_equal_on_ranks(reference, saved(reference, tmp_path / "divided"), tmp_path)
    folder = save(make(num_attention_heads=2), tmp_path, tiny_folder)
    with pytest.raises(InvalidSettingError, match="computed on one device"):
        registry.plan(folder, devices=["cpu", "cpu"])
