"""GGUF files of Nemotron-H: the logits of the transformers model that they were written from."""

import math
from functools import partial
from types import SimpleNamespace

import gguf
import pytest
import torch
from families import assert_adapters_equal_merged, assert_equal_logits, assert_near, load_gguf
from gguf_files import converted_tensors, write_converted
from nemotron.tiny_nemotron import ARCHITECTURE, make

from pipezoo_core.config import SupportedEncoding
from pipezoo_core.errors import CorruptCheckpointError, UnsupportedModelError
from pipezoo_core.weights import LazyTensor
from pipezoo_nemotron.config import NemotronConfig
from pipezoo_nemotron.gguf import config_from_gguf

pytestmark = pytest.mark.matrix

F32, Q8_0 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0
OF_HEADS = (".ssm_a", ".ssm_d")
MIXTURE = {"layers_block_type": ["linear_attention", "moe", "full_attention", "moe", "linear_attention"], "n_group": 1}
DENSE = {"layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp"]}


def write(reference, folder, quantization=F32, **metadata):
    """A number for each head is a row of its own."""
    tensors = {name: x[:, None] for name, x in converted_tensors(reference).items() if name.endswith(OF_HEADS)}
    return write_converted(reference, folder, quantization, metadata, tensors, pre="gpt-2")


@pytest.mark.parametrize(
    "changes",
    [
        DENSE,
        MIXTURE,
        {**DENSE, "use_bias": True, "mlp_bias": True, "use_conv_bias": False, "layer_norm_epsilon": 0.1},
        {**MIXTURE, "moe_latent_size": 32, "mlp_bias": True, "norm_topk_prob": False, "routed_scaling_factor": 1.5},
        {**DENSE, "n_groups": 1, "ssm_state_size": 20, "conv_kernel": 3, "mamba_num_heads": 4, "mamba_head_dim": 24},
        {"layers_block_type": ["full_attention", "mlp", "moe"], "n_group": 1},
        {**MIXTURE, "n_group": 4, "topk_group": 2},
    ],
    ids=str,
)
def test_logits_equal_transformers(changes, tmp_path):
    reference = make(**changes)
    assert_equal_logits(reference, load_gguf(ARCHITECTURE, write(reference, tmp_path)))


def test_the_shortest_step_is_that_of_published_models(tmp_path):
    reference = make(**DENSE)
    reference.model.layers[0].mixer.dt_bias.data.fill_(-8.0)
    assert_equal_logits(reference, load_gguf(ARCHITECTURE, write(reference, tmp_path)), chunks=(None,))


def test_no_head(tmp_path):
    """It is the embedding then."""
    reference = make(**DENSE, tie_word_embeddings=True)
    reference.lm_head.weight.data = reference.model.embeddings.weight.data.clone()
    assert_equal_logits(reference, load_gguf(ARCHITECTURE, write(reference, tmp_path)), chunks=(None,))


def test_layers_that_predict_further_tokens(tmp_path):
    """They are the last ones, and are left out."""
    reference = make(**MIXTURE)
    further = {f"blk.5.{name}.weight": torch.ones(64) for name in ("attn_norm", "nextn.enorm", "nextn.hnorm")}
    heads, sizes = [0, 0, 1, 0, 0, 1], [0, 40, 0, 40, 0, 40]
    said = {"block_count": 6, "nextn_predict_layers": 1, "attention.head_count_kv": heads, "feed_forward_length": sizes}
    rates = {name: x[:, None] for name, x in converted_tensors(reference).items() if name.endswith(OF_HEADS)}
    path = write_converted(reference, tmp_path, F32, said, {**rates, **further}, pre="gpt-2")
    assert_equal_logits(reference, load_gguf(ARCHITECTURE, path), chunks=(None,))


@pytest.mark.parametrize(
    "changes", [DENSE, {**MIXTURE, "moe_intermediate_size": 64, "num_experts_per_tok": 8}], ids=["dense", "experts"]
)
def test_kept_packed(changes, tmp_path):
    """With all experts chosen: rounding changes which a few of them are."""
    reference = make(**changes, moe_shared_expert_intermediate_size=64)
    assert_near(reference, load_gguf(ARCHITECTURE, write(reference, tmp_path, Q8_0), SupportedEncoding.packed))


def test_adapters_equal_merged_models(tmp_path):
    """They have the names of the model that they were trained on."""
    reference = make(**MIXTURE)
    model = partial(load_gguf, ARCHITECTURE, write(reference, tmp_path))
    targets = ["q_proj", "v_proj", "o_proj", "in_proj", "up_proj", "down_proj"]
    experts = [f"mixer.experts.{layer}" for layer in ("up_proj", "down_proj")]
    others = {"target_modules": ["k_proj", "in_proj"], "target_parameters": experts}
    assert_adapters_equal_merged(reference, model, tmp_path, targets=targets, **others)


SIZES = {
    "block_count": 3,
    "embedding_length": 64,
    "feed_forward_length": [0, 0, 40],
    "context_length": 256,
    "attention.head_count": 2,
    "attention.head_count_kv": [0, 1, 0],
    "attention.key_length": 128,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.dimension_count": 32,
    "ssm.conv_kernel": 4,
    "ssm.state_size": 16,
    "ssm.group_count": 1,
    "ssm.inner_size": 128,
    "ssm.time_step_rank": 8,
    "expert_count": 8,
    "expert_used_count": 2,
    "expert_feed_forward_length": 40,
    "expert_shared_feed_forward_length": 48,
}
TENSORS = ("token_embd", "output_norm", "blk.0.ssm_in", "blk.1.attn_q", "blk.2.ffn_gate_inp")
EMBEDDING = LazyTensor((99, 64), torch.float32, lambda rows: torch.zeros(99, 64)[rows])


def config_of_file(names=TENSORS, **changes):
    said = {"general.architecture": "nemotron_h_moe"}
    said |= {f"nemotron_h_moe.{key}": value for key, value in {**SIZES, **changes}.items()}
    raw = config_from_gguf(SimpleNamespace(metadata=said, weights={f"{name}.weight": EMBEDDING for name in names}))
    return NemotronConfig.from_huggingface(ARCHITECTURE.huggingface_config(raw))


def test_what_a_file_leaves_open():
    config = config_of_file()
    assert config.kinds == ("linear_attention", "full_attention", "moe")
    assert (config.mixture.routing.normalize, config.mixture.routing.scale) == (True, 1.0)
    assert (config.mixture.latent_size, config.mlp_bias, config.mamba.bias) == (None, False, False)
    assert (config.tie_word_embeddings, config.activation, config.head_dim) == (True, "relu2", 128)
    assert config.mamba.length_limits == (0.001, math.inf)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"names": (*TENSORS[:-1], "blk.2.attn_norm")}, CorruptCheckpointError, "layer 2 .* none of the tensors"),
        ({"attention.head_count_kv": [0, 0, 0]}, CorruptCheckpointError, "attention.head_count_kv"),
        ({"ssm.time_step_rank": 0}, CorruptCheckpointError, "ssm.time_step_rank is no size"),
        ({"ssm.group_count": 3}, UnsupportedModelError, "n_groups 3"),
        ({"expert_count": "4"}, CorruptCheckpointError, "expert_count is no size"),
        ({"expert_group_count": 9}, CorruptCheckpointError, "nemotron_h_moe.expert_group_count"),
        ({"expert_group_count": 3, "expert_group_used_count": 1}, UnsupportedModelError, "groups"),
        ({"expert_group_count": 2}, CorruptCheckpointError, "lacks 'nemotron_h_moe.expert_group_used_count'"),
        ({"expert_group_used_count": 2}, UnsupportedModelError, "nemotron_h_moe.expert_group_used_count"),
        ({"expert_gating_func": 1}, UnsupportedModelError, "nemotron_h_moe.expert_gating_func"),
        ({"attention.sliding_window": 8}, UnsupportedModelError, "nemotron_h_moe.attention.sliding_window"),
        ({"nextn_predict_layers": 3}, CorruptCheckpointError, "nextn_predict_layers is not what it can be"),
    ],
    ids=str,
)
def test_what_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        config_of_file(**changes)
