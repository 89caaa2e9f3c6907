"""GGUF files of LFM2, with experts and without: the logits of the transformers model that they were written from."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from families import assert_adapters_equal_merged, assert_equal_logits, expected_logits, load_gguf
from gguf_files import write_converted
from lfm2.tiny_lfm2 import make, make_moe

from pipezoo import registry
from pipezoo_core.errors import CorruptCheckpointError, UnsupportedModelError
from pipezoo_core.request import TextGenerationRequest
from pipezoo_core.weights import LazyTensor
from pipezoo_lfm2.config import Lfm2Config, config_from_gguf
from pipezoo_lfm2.plugin import pipezoo_architectures

ARCHITECTURES = {architecture.model_types[0]: architecture for architecture in pipezoo_architectures()}
write = partial(write_converted, pre="lfm2")


MAKERS = {"lfm2": make, "lfm2_moe": make_moe}
CONFIGS = [
    *((family, changes) for family in MAKERS for changes in ({}, {"conv_bias": True, "conv_L_cache": 4})),
    ("lfm2_moe", {"use_expert_bias": False, "num_dense_layers": 0}),
    ("lfm2_moe", {"num_experts_per_tok": 6, "num_dense_layers": 2, "norm_eps": 0.1}),
]


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "changes"), CONFIGS, ids=str)
def test_logits_equal_transformers(family, changes, tmp_path):
    reference = MAKERS[family](**changes)
    assert_equal_logits(reference, load_gguf(ARCHITECTURES[family], write(reference, tmp_path)))


@pytest.mark.parametrize("family", MAKERS)
def test_the_registry_loads_a_file(family, tmp_path):
    reference = MAKERS[family]()
    with registry.load(write(reference, tmp_path), dtype="float32", device="cpu", kv_cache_memory="4MiB") as llm:
        (output,) = llm.generate(TextGenerationRequest(prompt=[5, 9, 2]), max_new_tokens=1, temperature=0.0)
    assert output.tokens == [int(expected_logits(reference, [5, 9, 2])[-1].argmax())]


def test_gate_and_up_of_experts_in_one_tensor(tmp_path):
    """Where the converter was told so."""
    reference = make_moe()
    changes = {}
    for number in (1, 2):
        changes |= {f"blk.{number}.ffn_{kind}_exps.weight": None for kind in ("gate", "up")}
        fused = reference.state_dict()[f"model.layers.{number}.feed_forward.experts.gate_up_proj"]
        changes[f"blk.{number}.ffn_gate_up_exps.weight"] = fused
    assert_equal_logits(reference, load_gguf(ARCHITECTURES["lfm2_moe"], write(reference, tmp_path, tensors=changes)))


@pytest.mark.parametrize("family", MAKERS)
def test_adapters_equal_merged_models(family, tmp_path):
    """They have the names of the model that they were trained on."""
    reference = MAKERS[family]()
    model = partial(load_gguf, ARCHITECTURES[family], write(reference, tmp_path))
    others = {"target_modules": ["q_proj", "in_proj"]}
    if family == "lfm2_moe":
        others["target_parameters"] = [f"feed_forward.experts.{layer}" for layer in ("gate_up_proj", "down_proj")]
    targets = ["q_proj", "v_proj", "in_proj", "w1", "w2"]
    assert_adapters_equal_merged(reference, model, tmp_path, targets=targets, **others)


SIZES = {
    "block_count": 2,
    "embedding_length": 64,
    "feed_forward_length": 40,
    "context_length": 256,
    "attention.head_count": 2,
    "attention.head_count_kv": [0, 1],
    "attention.layer_norm_rms_epsilon": 1e-5,
    "shortconv.l_cache": 3,
    "expert_count": 8,
    "expert_used_count": 2,
    "expert_feed_forward_length": 24,
    "expert_gating_func": 2,
}


NOT_NEUTRAL = {
    "attention.sliding_window": 8,
    "expert_group_count": 2,
    "expert_group_used_count": 2,
    "expert_weights_norm": False,
    "expert_weights_scale": 2.5,
}


def config_of_file(**changes):
    said = {**SIZES, **changes}
    metadata = {"general.architecture": "lfm2moe", **{f"lfm2moe.{key}": said[key] for key in said}}
    embedding = LazyTensor((99, 64), torch.float32, lambda rows: torch.zeros(99, 64)[rows])
    weights = {"token_embd.weight": embedding, "output_norm.weight": embedding}
    raw = config_from_gguf(SimpleNamespace(metadata=metadata, weights=weights))
    return Lfm2Config.from_huggingface(ARCHITECTURES["lfm2_moe"].huggingface_config(raw))


def test_what_a_file_leaves_open():
    config = config_of_file()
    assert config.has_attention == (False, True)
    assert (config.mixture.num_dense_layers, config.mixture.has_correction, config.mixture.expert_size) == (
        0,
        False,
        24,
    )
    assert (config.mixture.routing.normalize, config.mixture.routing.scale) == (True, 1.0)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"expert_gating_func": 1}, UnsupportedModelError, "lfm2moe.expert_gating_func = 1"),
        *(
            ({key: value}, UnsupportedModelError, rf"lfm2moe\.{key} asks for something")
            for key, value in NOT_NEUTRAL.items()
        ),
        *(
            ({"leading_dense_block_count": number}, CorruptCheckpointError, "leading_dense_block_count is not what")
            for number in ("1", 1.0, True, -1, 3)
        ),
        ({"expert_count": 0}, CorruptCheckpointError, "expert_count is no size"),
        ({"shortconv.l_cache": 1}, UnsupportedModelError, "conv_L_cache is too small"),
        ({"attention.head_count_kv": [0, 0]}, CorruptCheckpointError, "lfm2moe.attention.head_count_kv"),
    ],
    ids=str,
)
def test_what_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        config_of_file(**changes)
