"""What the lfm2 plugin tells the registry, which configs and files it reads, and which it refuses."""

import json
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from lfm2.tiny_lfm2 import MIXED
from transformers import Lfm2Config as TransformersLfm2Config

from pipezoo import registry
from pipezoo_core.attention import kv_groups
from pipezoo_core.errors import CorruptCheckpointError, UnsupportedModelError
from pipezoo_core.recurrence import StateSpec
from pipezoo_core.testing.gguf_metadata import metadata_of
from pipezoo_core.weights import LazyTensor
from pipezoo_lfm2.config import Lfm2Config, config_from_gguf
from pipezoo_lfm2.huggingface_config import Lfm2HuggingFaceConfig

# As the checkpoint's config.json, cut to what matters.
LFM2_1B = {
    "architectures": ["Lfm2ForCausalLM"],
    "block_auto_adjust_ff_dim": True,
    "block_dim": 2048,
    "block_ff_dim": 12288,
    "block_ffn_dim_multiplier": 1.0,
    "block_multiple_of": 256,
    "conv_L_cache": 3,
    "conv_bias": False,
    "eos_token_id": 7,
    "full_attn_idxs": [2, 5, 8, 10, 12, 14],
    "hidden_size": 2048,
    "max_position_embeddings": 128000,
    "model_type": "lfm2",
    "norm_eps": 1e-05,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rope_theta": 1000000.0,
    "vocab_size": 65536,
}


def ours(raw):
    return Lfm2Config.from_huggingface(Lfm2HuggingFaceConfig.from_dict(deepcopy(raw)))


def test_config_of_the_checkpoint(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LFM2_1B))
    resolution = registry.resolve(tmp_path)
    assert (resolution.plugin.distribution, resolution.plugin.name) == ("pipezoo-lfm2", "lfm2")
    config = ours(LFM2_1B)
    assert (config.intermediate_size, config.head_dim, config.max_seq_len) == (8192, 64, 128000)
    assert [i for i, spec in enumerate(config.layers) if not isinstance(spec, StateSpec)] == LFM2_1B["full_attn_idxs"]
    assert config.layers[0] == StateSpec(((2, 2048),))
    assert config.tie_word_embeddings
    assert config.rope_parameters["rope_theta"] == 1e6


@pytest.mark.parametrize(
    "said",
    [
        LFM2_1B,
        {},
        {"layer_types": MIXED, "num_hidden_layers": 3},
        {"tie_embedding": False, "conv_bias": True, "conv_L_cache": 4},
        {"intermediate_size": 1000, "block_ffn_dim_multiplier": 1.3, "block_multiple_of": 100},
        {"intermediate_size": 1000, "block_auto_adjust_ff_dim": False},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5.0}},
        {"max_position_embeddings": 77, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    ],
    ids=str,
)
def test_configs_are_read_as_transformers_reads_them(said):
    """And a file that the kit writes of one says the size that the plugin computes with."""
    theirs = TransformersLfm2Config.from_dict(deepcopy(said))
    assert ours(said) == Lfm2Config.from_huggingface(theirs)
    assert metadata_of(theirs)["feed_forward_length"] == ours(said).intermediate_size


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"layer_types": ["conv", "sliding_attention"], "num_hidden_layers": 2}, "sliding_attention"),
        ({"conv_L_cache": 1}, "conv_L_cache is too small"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 9.0, "partial_rotary_factor": 0.5}}, "part"),
    ],
)
def test_what_is_refused(said, message):
    with pytest.raises(UnsupportedModelError, match=message):
        ours(said)


def test_without_attention_it_is_refused():
    config = ours({**LFM2_1B, "full_attn_idxs": []})
    with pytest.raises(UnsupportedModelError, match="no layer with attention"):
        kv_groups(config.layers)


EMBEDDING = LazyTensor((99, 64), torch.float32, lambda rows: torch.zeros(99, 64)[rows])


def config_of_file(**changes):
    sizes = {"block_count": 3, "embedding_length": 64, "feed_forward_length": 40, "context_length": 256}
    said = {**sizes, "attention.head_count": 2, "attention.layer_norm_rms_epsilon": 1e-5, "shortconv.l_cache": 3}
    said |= {"attention.head_count_kv": [0, 1, 0], **{key.replace("__", "."): value for key, value in changes.items()}}
    metadata = {"general.architecture": "lfm2", **{f"lfm2.{key}": value for key, value in said.items()}}
    norms = {f"blk.{number}.attn_norm.weight": EMBEDDING for number in range(3)}
    return config_from_gguf(SimpleNamespace(metadata=metadata, weights={"token_embd.weight": EMBEDDING, **norms}))


def test_layers_of_a_file_are_told_by_their_heads():
    config = ours(config_of_file())
    assert config.has_attention == (False, True, False)
    assert (config.num_kv_heads, config.intermediate_size, config.num_taps, config.norm_eps) == (1, 40, 3, 1e-5)
    assert ours(config_of_file(attention__head_count_kv=2)).has_attention == (True, True, True)


@pytest.mark.parametrize("heads", [[0, 0, 0], [0, 1], [0, -1, 1], ["1", 1, 1]], ids=str)
def test_heads_that_no_layers_have(heads):
    with pytest.raises(CorruptCheckpointError, match="head_count_kv"):
        config_of_file(attention__head_count_kv=heads)


def test_layers_that_differ_in_their_heads_are_refused():
    with pytest.raises(UnsupportedModelError, match="differ in their key/value heads"):
        config_of_file(attention__head_count_kv=[2, 0, 1])
