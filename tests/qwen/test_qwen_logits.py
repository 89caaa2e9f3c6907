"""Qwen2 and Qwen3 against transformers on the same weights, for everything that their configs can express."""

import pytest
from families import (
    NATIVE,
    assert_adapters_equal_merged,
    assert_equal_greedy_tokens,
    assert_equal_logits,
    assert_equal_on_ranks,
    assert_matters,
    save,
    why_not_replayed,
)
from kernels_here import needs_kernels
from qwen.tiny_qwen import CLASSES, make, saved
from tiny_models import load_model

pytestmark = pytest.mark.matrix

YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e6,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0 + 0.1 * i for i in range(16)],  # of a head of 32 numbers
    "long_factor": [2.0 + 0.5 * i for i in range(16)],
    "original_max_position_embeddings": 32,
}
BOTH = {
    "default": {},
    "head_dim": {"head_dim": 20},
    "multi_head": {"num_key_value_heads": 4},
    "multi_query": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "activation": {"hidden_act": "gelu_pytorch_tanh"},
    "eps": {"rms_norm_eps": 0.1},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    "dynamic": {
        "max_position_embeddings": 32,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    },
    "llama3": {"rope_parameters": LLAMA3},
    "longrope": {"head_dim": 32, "max_position_embeddings": 64, "rope_parameters": LONGROPE},
    "proportional": {"rope_parameters": {"rope_type": "proportional", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    "yarn": {"rope_parameters": YARN},
    "yarn_all": {"rope_parameters": {**YARN, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 0.8}},
    "window": {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 0},
    "window_of_upper_layers": {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1},
    "window_not_used": {"use_sliding_window": False, "sliding_window": 12, "max_window_layers": 0},
    "window_of_no_layer": {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 3},
    "layer_types": {"use_sliding_window": True, "sliding_window": 12, "layer_types": MIXED},
}
QWEN3 = {
    "attention_bias": {"attention_bias": True},
}
CONFIGS = {
    **{f"qwen2-{name}": ("qwen2", changes) for name, changes in BOTH.items()},
    **{f"qwen3-{name}": ("qwen3", changes) for name, changes in {**BOTH, **QWEN3}.items()},
}
WINDOW = {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 0}
UPPER = {**WINDOW, "max_window_layers": 2}
PAGE = 8 * 2 * 3 * 2 * 4  # 8 tokens: keys and values of 3 layers, 2 heads, in bytes per number of a head


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name, tmp_path):
    family, changes = CONFIGS[name]
    reference = make(family, **changes)
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path)))


@needs_kernels
@pytest.mark.parametrize("name", ["qwen2-default", *(name for name in CONFIGS if name.startswith("qwen3"))])
def test_logits_of_native_kernels(name, tmp_path):
    family, changes = CONFIGS[name]
    reference = make(family, **{**changes, "head_dim": 32})
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path), **NATIVE), chunks=(None, 7))


@pytest.mark.parametrize("family", CLASSES)
def test_plain_torch(family, tmp_path):
    reference = make(family)
    model = load_model(*saved(reference, tmp_path), attention="reference", linear="torch")
    assert_equal_logits(reference, model, chunks=(7,))


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("name", ["activation", "eps", "theta", "linear", "llama3", "yarn", "window", "layer_types"])
def test_switches_matter(family, name):
    assert_matters(make(family), make(family, **BOTH[name]))


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize(
    ("changes", "num_pages"),
    [({}, 16), (UPPER, 16), pytest.param(WINDOW, 3, marks=pytest.mark.slow)],
    ids=["full", "upper", "window"],
)
def test_greedy_tokens_equal_transformers(family, changes, num_pages, tiny_folder, tmp_path):
    reference = make(family, **changes)
    assert_equal_greedy_tokens(
        reference,
        save(reference, tmp_path, tiny_folder),
        few_pages=num_pages * PAGE * reference.model.layers[0].self_attn.head_dim,
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("num_ranks", [2, 4])  # of which four have two key/value heads
def test_ranks_equal_transformers(family, num_ranks, tmp_path):
    reference = make(family, **({"attention_bias": True} if family == "qwen3" else {}))
    assert_equal_on_ranks(reference, saved(reference, tmp_path / "model"), tmp_path, num_ranks)


@pytest.mark.parametrize("family", CLASSES)
def test_adapters_equal_merged_models(family, tmp_path):
    reference = make(family)
    model = saved(reference, tmp_path / "model")
    assert_adapters_equal_merged(reference, model, tmp_path, target_modules=["q_proj", "down_proj"])


@needs_kernels
@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_steps_are_replayed(family, dtype, tiny_folder, tmp_path):
    folder = save(make(family, head_dim=32), tmp_path, tiny_folder)
    assert why_not_replayed(folder, dtype=dtype) is None
