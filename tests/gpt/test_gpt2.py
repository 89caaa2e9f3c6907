"""GPT-2 against transformers on the same weights, and which configs are refused."""

import pytest
import torch
from families import (
    NATIVE,
    assert_adapters_equal_merged,
    assert_equal_greedy_tokens,
    assert_equal_logits,
    assert_equal_on_ranks,
    assert_matters,
    expected_logits,
    save,
    why_not_replayed,
)
from gpt.architectures import saved
from gpt.tiny_gpt import GPT2, make
from kernels_here import needs_kernels
from lora.peft_adapters import merged, save_adapter
from tiny_models import load_model, logits_of
from transformers import GPT2Config

from pipezoo import registry
from pipezoo_core.config import LoRAConfig, WeightsFormat
from pipezoo_core.errors import UnsupportedCheckpointError, UnsupportedModelError
from pipezoo_core.request import TextGenerationRequest
from pipezoo_core.weights import LazyTensor, Weights
from pipezoo_gpt.gpt2.weight_adapters import adapt_gpt2

pytestmark = pytest.mark.matrix

WIDE = {"n_embd": 64, "n_head": 2}  # heads of 32 numbers, for the kernels
CONFIGS = {
    "default": {},
    "activation": {"activation_function": "relu"},
    "eps": {"layer_norm_epsilon": 0.1},
    "inner": {"n_inner": 48},
    "untied": {"tie_word_embeddings": False},
    "unscaled": {"scale_attn_weights": False},
    "by_layer": {"scale_attn_by_inverse_layer_idx": True},
}
PAGE = 8 * 2 * 3 * 4 * 4 * 8  # 8 tokens: keys and values of 3 layers, 4 heads, 4 bytes per number, 8 numbers per head


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name, tmp_path):
    reference = make(**CONFIGS[name])
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path)))


@needs_kernels
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_of_native_kernels(name, tmp_path):
    reference = make(**{**WIDE, **CONFIGS[name]})
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path), **NATIVE), chunks=(None,))


@pytest.mark.parametrize("name", ["activation", "eps", "unscaled", "by_layer"])
def test_switches_matter(name):
    assert_matters(make(), make(**CONFIGS[name]))


def test_greedy_tokens_equal_transformers(tiny_folder, tmp_path):
    reference = make()
    assert_equal_greedy_tokens(reference, save(reference, tmp_path, tiny_folder), few_pages=16 * PAGE)


@needs_kernels
def test_steps_are_replayed(tiny_folder, tmp_path):
    assert why_not_replayed(save(make(**WIDE), tmp_path, tiny_folder), dtype="float32") is None


def test_defaults_are_those_of_transformers():
    config_class = GPT2.pipeline_model.config_class
    assert config_class.from_huggingface(GPT2.huggingface_config({})) == config_class.from_huggingface(GPT2Config())


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ({"activation_function": "no_such_function"}, "activation function is unknown"),
        ({"n_head": 5}, "do not divide"),
        ({"add_cross_attention": True}, "attention to an encoder"),
    ],
    ids=str,
)
def test_refused(raw, why):
    with pytest.raises(UnsupportedModelError, match=why):
        GPT2.pipeline_model.config_class.from_huggingface(GPT2.huggingface_config(raw))


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
def test_adapters_equal_merged_models(tmp_path):
    """PEFT's matrices of a Conv1D are those of a linear layer: only the checkpoint's are transposed."""
    reference = make()
    model = saved(reference, tmp_path / "model")
    assert_adapters_equal_merged(reference, model, tmp_path, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)


@pytest.mark.parametrize("rank", [32, 96, 128], ids=["hidden", "fused", "inner"])
def test_adapters_whose_rank_is_a_size_of_the_model(rank, tmp_path):
    """B is then as wide as a matrix of the checkpoint, and that of c_proj has its shape."""
    reference = make()
    save_adapter(reference, tmp_path / "a", target_modules=["c_attn", "c_fc", "c_proj"], r=rank, fan_in_fan_out=True)
    lora = LoRAConfig(lora_paths=[f"a={tmp_path / 'a'}"])
    (found,) = logits_of(load_model(*saved(reference, tmp_path / "model"), lora=lora), [[3, 1, 4, 1, 5]], loras=["a"])
    expected = expected_logits(merged(reference, tmp_path / "a"), [3, 1, 4, 1, 5])
    assert (found - expected).abs().max() < 1e-4 * max(1, expected.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["default", "untied"])
def test_ranks_equal_transformers(name, tmp_path):
    reference = make(**CONFIGS[name])
    assert_equal_on_ranks(reference, saved(reference, tmp_path / "model"), tmp_path)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_answers_in_lower_precision(dtype, tiny_folder, tmp_path):
    llm = registry.load(save(make(**WIDE), tmp_path, tiny_folder), dtype=dtype, device="cpu", kv_cache_memory="1MiB")
    output = llm.generate([TextGenerationRequest(prompt=[5, 6, 7])], max_new_tokens=8, ignore_eos=True)[0]
    assert len(output.tokens) == 8


def test_quantized_matrices_that_are_transposed_are_refused():
    weight = LazyTensor((4, 4), torch.float32, torch.zeros(4, 4).__getitem__)
    tensors = {"transformer.wte.weight": weight, "transformer.h.0.attn.c_proj.weight": weight}
    weights = Weights(WeightsFormat.safetensors, tensors, is_quantized=True)
    with pytest.raises(UnsupportedCheckpointError, match="quantized tensors of transposed layers"):
        adapt_gpt2(weights, None)
