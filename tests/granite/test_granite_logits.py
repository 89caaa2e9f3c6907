"""Granite 4 against transformers on the same weights, for everything that its configs can express."""

import pytest
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
from granite.tiny_granite import make, saved
from kernels_here import needs_kernels
from safetensors.torch import load_file, save_file
from tiny_models import load_model

from pipezoo import registry
from pipezoo_core.errors import InvalidSettingError
from pipezoo_core.request import TextGenerationRequest

pytestmark = pytest.mark.matrix

DENSE = {"num_local_experts": 0}
CONFIGS = {
    "default": {},
    "dense": DENSE,
    "all_attention": {**DENSE, "layer_types": ["full_attention"] * 3, "position_embedding_type": "rope"},
    "attention_first": {"layer_types": ["attention", "mamba", "mamba"]},
    "rope": {"position_embedding_type": "rope"},
    "linear": {
        "position_embedding_type": "rope",
        "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    },
    "nope": {"position_embedding_type": "nope"},
    "multi_head": {"num_key_value_heads": 2},
    "attention_bias": {"attention_bias": True},
    "tied": {"tie_word_embeddings": True},
    "eps": {"rms_norm_eps": 0.1},
    "one_group": {"mamba_n_groups": 1},
    "a_group_for_each_head": {"mamba_n_groups": 8},
    "wider_states": {"mamba_d_state": 40, "mamba_n_heads": 4, "mamba_d_head": 32},
    "wider": {"mamba_expand": 3, "mamba_n_heads": 4},
    "two_taps": {"mamba_d_conv": 2},
    "no_conv_bias": {"mamba_conv_bias": False},
    "proj_bias": {"mamba_proj_bias": True},
    "limits": {"time_step_limit": (0.5, 0.8)},
    "no_multipliers": {
        "embedding_multiplier": 1, "attention_multiplier": 0.2, "residual_multiplier": 1, "logits_scaling": 1,
    },
    "all_experts": {"num_experts_per_tok": 4},
    "one_expert": {"num_experts_per_tok": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name, tmp_path):
    reference = make(**CONFIGS[name])
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path), linear="torch"), chunks=(None, 7, 1))


@needs_kernels
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_of_native_kernels(name, tmp_path):
    reference = make(**CONFIGS[name])
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path), **NATIVE))


@pytest.mark.parametrize("name", ["rope", "eps", "limits", "no_multipliers", "all_experts"])
def test_switches_matter(name):
    assert_matters(make(), make(**CONFIGS[name]))


def test_names_of_published_files(tmp_path):
    """transformers has written other names of the same experts."""
    reference = make()
    model = saved(reference, tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    older = ("experts.gate_up_proj", "input_linear.weight"), ("experts.down_proj", "output_linear.weight")
    newer = [(new, old) for old, new in (*older, ("router.weight", "router.layer.weight"))]
    for pairs in ((*older, ("router.weight", "router.layer.weight")), newer):
        renamed = {}
        for name, tensor in found.items():
            for before, behind in pairs:
                if ".block_sparse_moe." in name:
                    name = name.replace(f"block_sparse_moe.{before}", f"block_sparse_moe.{behind}")
            renamed[name] = tensor
        save_file(renamed, tmp_path / "model.safetensors")
        assert_equal_logits(reference, load_model(*model, linear="torch"), chunks=(None,))


@pytest.mark.parametrize("changes", [{"tie_word_embeddings": True}, {**DENSE, "position_embedding_type": "rope"}],
                         ids=["experts", "dense"])  # fmt: skip
@pytest.mark.parametrize("linear", ["torch", pytest.param("native", marks=needs_kernels)])
def test_greedy_tokens_equal_transformers(changes, linear, tiny_folder, tmp_path):
    reference = make(**changes)
    page = 8 * 2 * 1 * 32 * 4  # 8 tokens: keys and values of a layer, a head of 32 numbers, in bytes per number
    folder = save(reference, tmp_path, tiny_folder)
    assert_equal_greedy_tokens(reference, folder, few_pages=16 * page, linear=linear)


def test_adapters_equal_merged_models(tmp_path):
    """PEFT passes over a parameter that the experts lack, here `up_proj`."""
    reference = make()
    targets = ["q_proj", "v_proj", "o_proj", "in_proj", "out_proj", "input_linear", "output_linear"]
    model = saved(reference, tmp_path / "model")
    experts = [
        f"block_sparse_moe.experts.{layer}" for layer in ("gate_up_proj", "up_proj", "down_proj")
    ]  # passed over: one
    others = {"target_modules": ["k_proj", "in_proj"], "target_parameters": experts}
    assert_adapters_equal_merged(reference, model, tmp_path, targets=targets, **others)


@needs_kernels
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_replayed_steps_are_those_of_the_module(dtype, tiny_folder, tmp_path):
    assert_replayed_as_eager(save(make(), tmp_path, tiny_folder), dtype, limit=1e-4 if dtype == "float32" else 0.0)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_it_answers(dtype, tiny_folder, tmp_path):
    folder = save(make(), tmp_path, tiny_folder)
    with registry.load(folder, dtype=dtype, device="cpu", kv_cache_memory="8MiB") as llm:
        (output,) = llm.generate(TextGenerationRequest(prompt=[5, 9]), max_new_tokens=5, ignore_eos=True)
        assert len(output.tokens) == 5


@pytest.mark.slow
def test_several_devices_divide_a_model_without_states(tmp_path):
    reference = make(**CONFIGS["all_attention"], num_attention_heads=4, num_key_value_heads=2, attention_bias=True)
    assert_equal_on_ranks(reference, saved(reference, tmp_path / "model"), tmp_path)


def test_several_devices_are_refused(tiny_folder, tmp_path):
    folder = save(make(), tmp_path, tiny_folder)
    with pytest.raises(InvalidSettingError, match="computed on one device"):
        registry.plan(folder, devices=["cpu", "cpu"])
