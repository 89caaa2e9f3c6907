"""OLMo, OLMo 2 and 3 against transformers on the same weights, for everything that their configs can express."""

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
from olmo.tiny_olmo import CLASSES, MIXED, make
from tiny_models import load_model

from pipezoo_core.config import SupportedEncoding
from pipezoo_olmo.model import OlmoPipelineModel
from pipezoo_olmo.weight_adapters import adapt_safetensors

pytestmark = pytest.mark.matrix

ALL = {
    "default": {},
    "head_dim": {"head_dim": 20},
    "no_head_dim": {"head_dim": None},
    "multi_head": {"num_key_value_heads": None},
    "multi_query": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "attention_bias": {"attention_bias": True},
    "activation": {"hidden_act": "gelu_pytorch_tanh"},
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES = {
    "theta": {"rope_type": "default", "rope_theta": 100.0},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    "llama3": {**LLAMA3, "rope_theta": 1e4, "original_max_position_embeddings": 64},
    "yarn": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64},
}
LENGTH = {"max_position_embeddings": 64}  # shorter than a prompt, which matters to dynamic RoPE


def by_kind(rope):
    """What an OLMo 3's config says where only the layers that see all are stretched."""
    return {"full_attention": dict(rope), "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}}


CONFIGS = {f"{family}-{name}": (family, changes) for family in CLASSES for name, changes in ALL.items()}
CONFIGS |= {
    f"{family}-{name}": (family, {**LENGTH, "rope_parameters": by_kind(rope) if family == "olmo3" else rope})
    for family in CLASSES
    for name, rope in ROPES.items()
}
CONFIGS |= {
    "olmo-clip": ("olmo", {"clip_qkv": 0.5}),
    "olmo2-eps": ("olmo2", {"rms_norm_eps": 0.5}),
    "olmo3-eps": ("olmo3", {"rms_norm_eps": 0.5}),
    "olmo3-wide": ("olmo3", {"sliding_window": 1000}),
    "olmo3-layer_types": ("olmo3", {"layer_types": [*MIXED[1:], "full_attention"]}),
    "olmo3-pattern": ("olmo3", {"layer_types": None, "num_hidden_layers": 5}),
    "olmo3-all_windowed": ("olmo3", {"layer_types": ["sliding_attention"] * 3}),
}
OF_KERNELS = ["default", "multi_query", "attention_bias", "linear"]
OF_KERNELS = [f"{family}-{name}" for family in CLASSES for name in OF_KERNELS]


def saved(reference, folder):
    """What `load_model` takes."""
    reference.save_pretrained(folder)
    return OlmoPipelineModel, folder, reference.config, adapt_safetensors


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name, tmp_path):
    family, changes = CONFIGS[name]
    reference = make(family, **changes)
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path)))


@needs_kernels
@pytest.mark.parametrize("name", [*OF_KERNELS, "olmo-clip", "olmo3-pattern"])
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


SWITCHES = ["activation", "theta", "linear", "yarn", "clip", "eps", "wide", "layer_types"]
SWITCHES = [f"{family}-{name}" for family in CLASSES for name in SWITCHES]


@pytest.mark.parametrize("name", [name for name in SWITCHES if name in CONFIGS])
def test_switches_matter(name):
    family, changes = CONFIGS[name]
    assert_matters(make(family), make(family, **changes))


PAGE = 8 * 2 * 3 * 2 * 4 * 32  # the bytes of 8 tokens: keys and values of 3 layers, 2 heads of 32 numbers


@pytest.mark.parametrize("family", CLASSES)
def test_greedy_tokens_equal_transformers(family, tiny_folder, tmp_path):
    reference = make(family, **({"clip_qkv": 0.5} if family == "olmo" else {}))
    assert_equal_greedy_tokens(reference, save(reference, tmp_path, tiny_folder), few_pages=16 * PAGE)


@needs_kernels
def test_greedy_tokens_of_replayed_steps(tiny_folder, tmp_path):
    reference = make("olmo3")
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
    reference = make(family, **({"clip_qkv": 0.5} if family == "olmo" else {}))
    assert why_not_replayed(save(reference, tmp_path, tiny_folder), dtype=dtype) is None
