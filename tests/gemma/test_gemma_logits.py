"""Gemma, Gemma 2 and 3 against transformers on the same weights, for everything that their configs can express."""

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
from gemma.tiny_gemma import CLASSES, MIXED, WINDOWED, make
from kernels_here import needs_kernels
from tiny_models import load_model

from pipezoo_core.config import SupportedEncoding
from pipezoo_gemma.model import GemmaPipelineModel
from pipezoo_gemma.weight_adapters import adapt_safetensors

pytestmark = pytest.mark.matrix

ALL = {
    "default": {},
    "head_dim": {"head_dim": 20},
    "multi_head": {"num_key_value_heads": 4},
    "multi_query": {"num_key_value_heads": 1},
    "untied": {"tie_word_embeddings": False},
    "attention_bias": {"attention_bias": True},
    "eps": {"rms_norm_eps": 0.1},
}
OF_WINDOWED = {
    "activation": {"hidden_activation": "silu"},
    "scale": {"query_pre_attn_scalar": 3},
    "wide": {"sliding_window": 1000},
    "one_token": {"sliding_window": 1},
    "layer_types": {"layer_types": MIXED},
    "all_windowed": {"layer_types": ["sliding_attention"] * 3},
    "none_windowed": {"layer_types": ["full_attention"] * 3},
    "logit_softcap": {"final_logit_softcapping": 2.0},
    "no_logit_softcap": {"final_logit_softcapping": None},
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES = {
    "theta": {"rope_type": "default", "rope_theta": 100.0},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    "llama3": {**LLAMA3, "rope_theta": 1e4, "original_max_position_embeddings": 64},
    "yarn": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64},
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1 + i / 8 for i in range(16)],
        "long_factor": [1 + i / 2 for i in range(16)],
        "original_max_position_embeddings": 64,
        "factor": 4.0,
    },
    "proportional": {"rope_type": "proportional", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
}
LENGTH = {"max_position_embeddings": 64}  # shorter than a prompt, which matters to dynamic RoPE


def by_kind(rope):
    """What a Gemma 3's config says where only the layers that see all are stretched."""
    return {"full_attention": dict(rope), "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}}


CONFIGS = {f"{family}-{name}": (family, changes) for family in CLASSES for name, changes in ALL.items()}
CONFIGS |= {f"{family}-{name}": (family, changes) for family in WINDOWED for name, changes in OF_WINDOWED.items()}
CONFIGS |= {
    f"{family}-{name}": (family, {**LENGTH, "rope_parameters": by_kind(rope) if family == "gemma3" else rope})
    for family, names in {"gemma": ["theta", "dynamic"], "gemma2": ["linear", "longrope"], "gemma3": ROPES}.items()
    for name, rope in ROPES.items()
    if name in names
}
CONFIGS |= {
    "gemma-activation": ("gemma", {"hidden_act": "relu"}),
    "gemma-gelu": ("gemma", {"hidden_act": "gelu"}),
    "gemma2-softcap": ("gemma2", {"attn_logit_softcapping": 0.5}),
    "gemma2-no_softcap": ("gemma2", {"attn_logit_softcapping": None}),
    "gemma3-pattern": ("gemma3", {"sliding_window_pattern": 2}),
    "gemma3-local_rope": ("gemma3", {"rope_parameters": dict.fromkeys(MIXED, ROPES["yarn"])}),
}


def saved(reference, folder):
    """What `load_model` takes."""
    reference.save_pretrained(folder)
    return GemmaPipelineModel, folder, reference.config, adapt_safetensors


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name, tmp_path):
    family, changes = CONFIGS[name]
    reference = make(family, **changes)
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path)))


OF_KERNELS = ["default", "multi_query", "attention_bias", "scale", "layer_types", "all_windowed", "linear", "longrope"]
OF_KERNELS = [f"{family}-{name}" for family in CLASSES for name in OF_KERNELS if f"{family}-{name}" in CONFIGS]


@needs_kernels
@pytest.mark.parametrize("name", [*OF_KERNELS, "gemma2-softcap", "gemma2-no_softcap", "gemma3-logit_softcap"])
def test_logits_of_native_kernels(name, tmp_path):
    family, changes = CONFIGS[name]
    reference = make(family, **changes)
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path), **NATIVE))


@pytest.mark.parametrize("family", CLASSES)
def test_plain_torch(family, tmp_path):
    reference = make(family)
    model = load_model(*saved(reference, tmp_path), attention="reference", linear="torch")
    assert_equal_logits(reference, model, chunks=(7,))


@needs_kernels
@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize(("encoding", "most"), [("bfloat16", 0.06), ("int8", 0.15)])
def test_lower_precision_is_near(family, encoding, most, tmp_path):
    reference = make(family)
    model = load_model(*saved(reference, tmp_path), **NATIVE, encoding=SupportedEncoding(encoding))
    assert_near_logits(reference, model, most)


SWITCHES = {"gemma": ["eps"], "gemma2": ["eps", *OF_WINDOWED], "gemma3": ["eps", *OF_WINDOWED]}
SWITCHES = [(family, name) for family, names in SWITCHES.items() for name in names if name != "no_logit_softcap"]


@pytest.mark.parametrize(("family", "name"), SWITCHES)
def test_switches_matter(family, name):
    assert_matters(make(family), make(family, **CONFIGS[f"{family}-{name}"][1]))


@pytest.mark.parametrize("name", ["gemma-theta", "gemma2-softcap", "gemma2-linear", "gemma3-local_rope", *ROPES])
def test_more_switches_matter(name):
    family, changes = CONFIGS.get(name) or CONFIGS[f"gemma3-{name}"]
    plain = CONFIGS["gemma3-theta"][1] if name in ROPES and name != "theta" else {}
    assert_matters(make(family, **plain), make(family, **changes))


PAGE = 8 * 2 * 3 * 2 * 4 * 32  # the bytes of 8 tokens: keys and values of 3 layers, 2 heads of 32 numbers


@pytest.mark.parametrize("family", CLASSES)
def test_greedy_tokens_equal_transformers(family, tiny_folder, tmp_path):
    reference = make(family)
    assert_equal_greedy_tokens(reference, save(reference, tmp_path, tiny_folder), few_pages=16 * PAGE)


@needs_kernels
def test_greedy_tokens_of_replayed_steps(tiny_folder, tmp_path):
    reference = make("gemma3")
    folder = save(reference, tmp_path, tiny_folder)
    assert why_not_replayed(folder, dtype="float32") is None
    assert_equal_greedy_tokens(reference, folder, few_pages=3 * 4 * PAGE, page_size=32)


@pytest.mark.slow
@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("num_ranks", [2, 4])  # of which four have two key/value heads
def test_ranks_equal_transformers(family, num_ranks, tmp_path):
    reference = make(family, attention_bias=True)
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
    folder = save(make(family), tmp_path, tiny_folder)
    assert why_not_replayed(folder, dtype=dtype) is None
