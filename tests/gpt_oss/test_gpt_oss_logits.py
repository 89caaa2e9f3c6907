"""gpt-oss against transformers on the same weights, for everything that its config can express."""

import pytest
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
from gpt_oss.tiny_gpt_oss import YARN, make, saved
from kernels_here import needs_kernels
from tiny_models import load_model

from pipezoo import registry
from pipezoo_core.request import TextGenerationRequest

pytestmark = pytest.mark.matrix

FULL, WINDOW = "full_attention", "sliding_attention"
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0 + 0.1 * i for i in range(16)],  # of a head of 32 numbers
    "long_factor": [2.0 + 0.5 * i for i in range(16)],
    "original_max_position_embeddings": 32,
}
CONFIGS = {
    "default": {},
    "head_dim": {"head_dim": 20},
    "multi_head": {"num_key_value_heads": 4},
    "multi_query": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "no_bias": {"attention_bias": False},
    "eps": {"rms_norm_eps": 0.1},
    "limit": {"swiglu_limit": 0.3},
    "alpha": {"swiglu_alpha": 0.5},
    "hidden_act": {"hidden_act": "gelu"},
    "one_expert": {"num_experts_per_tok": 1},
    "all_experts": {"num_experts_per_tok": 6},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    "dynamic": {
        "max_position_embeddings": 32,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    },
    "longrope": {"head_dim": 32, "max_position_embeddings": 64, "rope_parameters": LONGROPE},
    "truncated": {"rope_parameters": {**YARN, "truncate": True}},
    "yarn": {"rope_parameters": {**YARN, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 0.8}},
    "window": {"sliding_window": 5},
    "windows": {"layer_types": [WINDOW] * 3},
    "no_window": {"layer_types": [FULL] * 3},
    "layer_types": {"layer_types": [FULL, WINDOW, FULL]},
}
KERNELS = {"head_dim": 32, "hidden_size": 64, "intermediate_size": 64}  # sizes that the kernels take
PAGE = 8 * 2 * 2 * 16 * 4  # 8 tokens of a layer: keys and values of 2 heads of 16 numbers


@pytest.mark.parametrize("name", CONFIGS)
def test_logits(name, tmp_path):
    reference = make(**CONFIGS[name])
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path)))


@needs_kernels
@pytest.mark.parametrize("name", ["default", "no_bias", "longrope", "windows", "layer_types", "multi_query"])
def test_logits_of_native_kernels(name, tmp_path):
    reference = make(**{**CONFIGS[name], **KERNELS})
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path), **NATIVE))


def test_plain_torch(tmp_path):
    reference = make()
    model = load_model(*saved(reference, tmp_path), attention="reference", linear="torch")
    assert_equal_logits(reference, model, chunks=(7,))


@pytest.mark.parametrize(
    "name", ["eps", "limit", "alpha", "one_expert", "theta", "yarn", "truncated", "window", "layer_types"]
)
def test_switches_matter(name):
    assert_matters(make(), make(**CONFIGS[name]))


@pytest.mark.parametrize("part", ["sinks", "router.bias", "gate_up_proj_bias", "down_proj_bias"])
def test_parameters_of_its_own_matter(part):
    reference, other = make(), make()
    for name, parameter in other.named_parameters():
        if name.endswith(part):
            parameter.data.zero_()
    difference = expected_logits(reference, [5, 9, 2, 7]) - expected_logits(other, [5, 9, 2, 7])
    assert difference.abs().max() > 0.01


@pytest.mark.parametrize(
    ("changes", "num_pages"), [({}, 40), ({"layer_types": [WINDOW] * 3}, 9)], ids=["alternating", "windows"]
)
def test_greedy_tokens_equal_transformers(changes, num_pages, tiny_folder, tmp_path):
    reference = make(**changes)
    assert_equal_greedy_tokens(reference, save(reference, tmp_path, tiny_folder), few_pages=num_pages * PAGE)


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 4])  # of which four have two key/value heads
def test_ranks_equal_transformers(num_ranks, tmp_path):
    reference = make()
    assert_equal_on_ranks(reference, saved(reference, tmp_path / "model"), tmp_path, num_ranks)


def test_adapters_equal_merged_models(tmp_path):
    reference = make()
    model = saved(reference, tmp_path / "model")
    assert_adapters_equal_merged(reference, model, tmp_path, target_modules=["q_proj", "o_proj"])


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_it_answers(dtype, tiny_folder, tmp_path):
    folder = save(make(intermediate_size=64), tmp_path, tiny_folder)
    with registry.load(folder, dtype=dtype, device="cpu", kv_cache_memory="4MiB") as llm:
        (output,) = llm.generate(TextGenerationRequest(prompt="hello"), max_new_tokens=5, ignore_eos=True)
        assert len(output.tokens) == 5


@needs_kernels
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_steps_are_replayed(dtype, tmp_path):
    make(**KERNELS).save_pretrained(tmp_path)
    assert why_not_replayed(tmp_path, dtype=dtype) is None
