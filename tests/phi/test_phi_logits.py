"""Phi and Phi-3 against transformers on the same weights, for everything that their configs can express."""

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
from phi.tiny_phi import CLASSES, make, saved
from tiny_models import load_model

from pipezoo import registry
from pipezoo_core.request import TextGenerationRequest

pytestmark = pytest.mark.matrix

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.3, 1.7, 2.0],
    "long_factor": [2.0, 3.5, 5.0, 8.0],
}
PART = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75}
WIDE = {"num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 64}  # heads of 32 numbers, for the kernels
WIDE_LONGROPE = {
    **LONGROPE,
    "short_factor": [1 + i / 9 for i in range(16)],
    "long_factor": [2.0 + i for i in range(16)],
}
BOTH = {
    "default": {},
    "multi_head": {"num_key_value_heads": None},
    "multi_query": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "activation": {"hidden_act": "relu"},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "part": {"rope_parameters": PART},
}
PHI = {
    **BOTH,
    "eps": {"layer_norm_eps": 0.1},
    "qk_layernorm": {"qk_layernorm": True},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
}
PHI3 = {
    **BOTH,
    "eps": {"rms_norm_eps": 0.1},
    "window": {"sliding_window": 12},
    "longrope": {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64},
}
CONFIGS = {
    **{f"phi-{name}": ("phi", changes) for name, changes in PHI.items()},
    **{f"phi3-{name}": ("phi3", changes) for name, changes in PHI3.items()},
}
MATTERING = {"activation", "eps", "linear", "longrope", "part", "theta", "window"}
PAGE = 8 * 2 * 3 * 2 * 4 * 8  # 8 tokens: keys and values of 3 layers, 2 heads, 4 bytes per number, 8 numbers per head


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name, tmp_path):
    family, changes = CONFIGS[name]
    reference = make(family, **changes)
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path)), chunks=(None,))


@pytest.mark.parametrize("name", [name for name in CONFIGS if "longrope" not in name])
def test_logits_in_chunks(name, tmp_path):
    family, changes = CONFIGS[name]
    reference = make(family, **changes)
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path)), chunks=(7,))


@needs_kernels
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_of_native_kernels(name, tmp_path):
    family, changes = CONFIGS[name]
    changes = {**WIDE, **{key: value for key, value in changes.items() if key != "num_key_value_heads"}}
    if name == "phi3-longrope":
        changes["rope_parameters"] = WIDE_LONGROPE
    reference = make(family, **changes)
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path), **NATIVE), chunks=(None,))


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.split("-")[1] in MATTERING])
def test_switches_matter(name):
    family, changes = CONFIGS[name]
    assert_matters(make(family), make(family, **changes))


@pytest.mark.parametrize("family", CLASSES)
def test_greedy_tokens_equal_transformers(family, tiny_folder, tmp_path):
    reference = make(family)
    assert_equal_greedy_tokens(reference, save(reference, tmp_path, tiny_folder), few_pages=16 * PAGE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["phi-default", "phi-qk_layernorm", "phi3-default"])
def test_ranks_equal_transformers(name, tmp_path):
    family, changes = CONFIGS[name]
    reference = make(family, **changes)
    assert_equal_on_ranks(reference, saved(reference, tmp_path / "model"), tmp_path)


@pytest.mark.parametrize(("family", "targets"), [("phi", ["q_proj", "fc2"]), ("phi3", ["qkv_proj", "down_proj"])])
def test_adapters_equal_merged_models(family, targets, tmp_path):
    reference = make(family)
    model = saved(reference, tmp_path / "model")
    assert_adapters_equal_merged(reference, model, tmp_path, target_modules=targets)


@needs_kernels
@pytest.mark.parametrize("family", CLASSES)
def test_steps_are_replayed(family, tiny_folder, tmp_path):
    folder = save(make(family, **WIDE), tmp_path, tiny_folder)
    assert why_not_replayed(folder, dtype="float32") is None


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_it_answers(family, dtype, tiny_folder, tmp_path):
    folder = save(make(family, **WIDE), tmp_path, tiny_folder)
    with registry.load(folder, dtype=dtype, device="cpu", kv_cache_memory="8MiB") as llm:
        (output,) = llm.generate(TextGenerationRequest(prompt=[5, 9]), max_new_tokens=5, ignore_eos=True)
        assert len(output.tokens) == 5
