"""GGUF files of Granite 4's hybrids: the logits of the transformers model that they were written from."""

import math
from functools import partial
from types import SimpleNamespace

import gguf
import pytest
import torch
from families import assert_adapters_equal_merged, assert_equal_logits, assert_near, load_gguf
from gguf_files import converted_tensors, write_converted
from granite.tiny_granite import ARCHITECTURE, make

from pipezoo_core.config import SupportedEncoding
from pipezoo_core.errors import CorruptCheckpointError, UnsupportedModelError
from pipezoo_core.weights import LazyTensor
from pipezoo_granite.config import GraniteConfig
from pipezoo_granite.gguf import adapt_gguf, config_from_gguf

pytestmark = pytest.mark.matrix

F32, Q8_0 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0
OF_HEADS = (".ssm_a", ".ssm_d")


def write(reference, folder, quantization=F32, **metadata):
    """A number for each head is a row of its own."""
    tensors = {name: x[:, None] for name, x in converted_tensors(reference).items() if name.endswith(OF_HEADS)}
    return write_converted(reference, folder, quantization, metadata, tensors, pre="gpt-2")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_local_experts": 0, "intermediate_size": 48},
        {"tie_word_embeddings": True},
        {"mamba_n_groups": 1},
        {"mamba_conv_bias": False, "mamba_proj_bias": True, "attention_bias": True},
        {"mamba_expand": 3, "mamba_n_heads": 4, "mamba_d_state": 20, "mamba_d_conv": 3},
        {"layer_types": ["attention", "mamba", "mamba"], "rms_norm_eps": 0.1},
    ],
    ids=str,
)
def test_logits_equal_transformers(changes, tmp_path):
    reference = make(**changes)
    assert_equal_logits(reference, load_gguf(ARCHITECTURE, write(reference, tmp_path)))


def test_positions(tmp_path):
    """What a file leaves open are rotary positions, as llama.cpp takes it."""
    reference = make(position_embedding_type="rope", rope_parameters={"rope_type": "default", "rope_theta": 50.0})
    path = write(reference, tmp_path, **{"rope.scaling.finetuned": True})
    assert_equal_logits(reference, load_gguf(ARCHITECTURE, path))


def test_kept_packed(tmp_path):
    reference = make(shared_intermediate_size=64)
    assert_near(reference, load_gguf(ARCHITECTURE, write(reference, tmp_path, Q8_0), SupportedEncoding.packed))


def test_adapters_equal_merged_models(tmp_path):
    """They have the names of the model that they were trained on."""
    reference = make()
    model = partial(load_gguf, ARCHITECTURE, write(reference, tmp_path))
    targets = ["q_proj", "v_proj", "o_proj", "in_proj", "out_proj", "input_linear", "output_linear"]
    experts = [f"block_sparse_moe.experts.{layer}" for layer in ("gate_up_proj", "down_proj")]
    others = {"target_modules": ["k_proj", "in_proj"], "target_parameters": experts}
    assert_adapters_equal_merged(reference, model, tmp_path, targets=targets, **others)


@pytest.mark.parametrize("rate", [0.0, 0.5, math.nan])
def test_rates_that_are_none(rate):
    rates = torch.tensor([[-1.0], [rate]])
    tensors = {"blk.0.ssm_a": LazyTensor(rates.shape, rates.dtype, rates.__getitem__)}
    config = make().config
    (tensor,) = adapt_gguf(tensors, config).values()
    with pytest.raises(CorruptCheckpointError, match="ssm_a has rates of decay that are none"):
        tensor.load()


SIZES = {
    "block_count": 2,
    "embedding_length": 64,
    "feed_forward_length": 40,
    "context_length": 256,
    "attention.head_count": 2,
    "attention.head_count_kv": [0, 1],
    "attention.layer_norm_rms_epsilon": 1e-5,
    "ssm.conv_kernel": 4,
    "ssm.state_size": 16,
    "ssm.group_count": 1,
    "ssm.inner_size": 128,
    "ssm.time_step_rank": 8,
}
EMBEDDING = LazyTensor((99, 64), torch.float32, lambda rows: torch.zeros(99, 64)[rows])


def config_of_file(**changes):
    said = {**SIZES, **changes}
    metadata = {"general.architecture": "granitehybrid", **{f"granitehybrid.{key}": said[key] for key in said}}
    weights = {"token_embd.weight": EMBEDDING, "output_norm.weight": EMBEDDING}
    raw = config_from_gguf(SimpleNamespace(metadata=metadata, weights=weights))
    return GraniteConfig.from_huggingface(ARCHITECTURE.huggingface_config(raw))


def test_what_a_file_leaves_open():
    config = config_of_file()
    assert config.has_state == (True, False)
    assert (config.embedding_scale, config.residual_scale, config.logit_scale) == (1.0, 1.0, 1.0)
    assert config.attention_scale == 32**-0.5
    assert (config.routing, config.intermediate_size) == (None, 40)
    assert config.rope_parameters is not None
    assert config.mamba.length_limits == (0.0, math.inf)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"attention.head_count_kv": [0, 0]}, CorruptCheckpointError, "granitehybrid.attention.head_count_kv"),
        ({"attention.head_count_kv": [2, 1]}, UnsupportedModelError, "differ in their key/value heads"),
        ({"ssm.time_step_rank": 0}, CorruptCheckpointError, "ssm.time_step_rank is no size"),
        ({"ssm.inner_size": 100}, UnsupportedModelError, "do not fit their width"),
        ({"rope.dimension_count": 8}, UnsupportedModelError, "a part of each head"),
        ({"expert_count": 4}, CorruptCheckpointError, "lacks 'granitehybrid.expert_used_count'"),
        ({"expert_count": "4"}, CorruptCheckpointError, "expert_count is no size"),
        ({"attention.sliding_window": 8}, UnsupportedModelError, "granitehybrid.attention.sliding_window"),
        ({"expert_gating_func": 2}, UnsupportedModelError, "granitehybrid.expert_gating_func"),
        ({"expert_weights_scale": 2.5}, UnsupportedModelError, "granitehybrid.expert_weights_scale"),
    ],
    ids=str,
)
def test_what_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        config_of_file(**changes)
