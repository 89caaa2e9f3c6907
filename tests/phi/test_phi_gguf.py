"""GGUF files of Phi: the logits of the transformers model they were written from, and of what it reads."""

import math
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from families import PROMPTS, assert_equal_logits, load_gguf, read_gguf_by_transformers
from gguf_files import TOKENS, write_gguf
from phi.tiny_phi import ARCHITECTURES, CLASSES, make

from pipezoo import registry
from pipezoo_core.errors import CheckpointMismatchError, CorruptCheckpointError, UnsupportedModelError
from pipezoo_core.request import TextGenerationRequest
from pipezoo_core.weights import open_gguf
from pipezoo_phi.config import config_from_gguf

pytestmark = pytest.mark.matrix

FILES = {"phi": "phi2", "phi3": "phi3"}
NAMES = {
    "phi": {
        "self_attn.dense": "attn_output",
        "mlp.fc1": "ffn_up",
        "mlp.fc2": "ffn_down",
        "model.final_layernorm": "output_norm",
    },
    "phi3": {"mlp.gate_up_proj": "ffn_up"},
}
SHORT, LONG = [1.0, 1.5, 2.0], [2.0, 3.5, 5.0]  # 6 of the 8 numbers of a head are rotated
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": SHORT,
    "long_factor": LONG,
    "partial_rotary_factor": 0.75,
}
FACTORS = {"rope_factors_short.weight": np.float32(SHORT), "rope_factors_long.weight": np.float32(LONG)}
PART = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75}


def make_for_file(family, **changes):
    return make(family, **{"intermediate_size": 64, **changes})


def write(folder, reference, quantization=gguf.GGMLQuantizationType.F32, extra_tensors=None, **metadata):
    """Writes what llama.cpp's converter does: how many numbers are rotated, of Phi-3 window and trained length."""
    config, family = reference.config, reference.config.model_type
    head_dim = config.hidden_size // config.num_attention_heads
    said = {"rope__dimension_count": int(config.rope_parameters["partial_rotary_factor"] * head_dim)}
    if family == "phi":
        said["attention__layer_norm_epsilon"] = config.layer_norm_eps
        config.rms_norm_eps = 1e-5  # the writer's, and not read
    else:
        said["attention__sliding_window"] = config.sliding_window or 0
        said["rope__scaling__original_context_length"] = config.original_max_position_embeddings
    if config.rope_parameters["rope_type"] == "longrope":
        extra_tensors = {**FACTORS, **(extra_tensors or {})}
        original = config.original_max_position_embeddings
        growth = math.log(config.max_position_embeddings / original)
        said["rope__scaling__attn_factor"] = math.sqrt(1 + growth / math.log(original))
    named = {f"{FILES[family]}.{key.replace('__', '.')}": value for key, value in {**said, **metadata}.items()}
    named["tokenizer.ggml.padding_token_id"] = 0  # transformers takes 32,000 where there is none
    names = {"self_attn.qkv_proj": "attn_qkv", **NAMES[family]}
    path = folder / "m.gguf"
    return write_gguf(path, reference, FILES[family], quantization, named, extra_tensors, pre="gpt-2", names=names)


def load(path):
    family = "phi3" if open_gguf(path).metadata["general.architecture"] == "phi3" else "phi"
    return load_gguf(ARCHITECTURES[family], path)


CONFIGS = {
    "phi-plain": {},
    "phi-part": {"rope_parameters": PART},
    "phi-eps": {"layer_norm_eps": 0.1},
    "phi-theta": {"rope_parameters": {**PART, "rope_theta": 1e6}},
    "phi3-plain": {},
    "phi3-part": {"rope_parameters": PART},
    "phi3-eps": {"rms_norm_eps": 0.1},
    "phi3-tied": {"tie_word_embeddings": True},
    "phi3-multi_query": {"num_key_value_heads": 1},
    "phi3-window": {"sliding_window": 12},
    "phi3-longrope": {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name, tmp_path):
    reference = make_for_file(name.split("-")[0], **CONFIGS[name])
    chunks = (None,) if name == "phi3-longrope" else (None, 7)
    assert_equal_logits(reference, load(write(tmp_path, reference)), chunks)


def test_a_file_with_one_matrix_of_queries_keys_and_values(tmp_path):
    """As converters wrote them of Phi-2's first checkpoint."""
    reference = make_for_file("phi")
    weights = dict(reference.state_dict())
    for layer in range(reference.config.num_hidden_layers):
        for parameter in ("weight", "bias"):
            parts = [weights.pop(f"model.layers.{layer}.self_attn.{part}_proj.{parameter}") for part in "qkv"]
            weights[f"model.layers.{layer}.self_attn.qkv_proj.{parameter}"] = torch.cat(parts)
    fused = SimpleNamespace(config=reference.config, state_dict=lambda: weights)
    assert_equal_logits(reference, load(write(tmp_path, fused)))


def test_a_file_that_leaves_out_the_temperature_has_none(tmp_path):
    reference = make_for_file("phi3", rope_parameters=LONGROPE, original_max_position_embeddings=64)
    file = open_gguf(write(tmp_path, reference))
    found = config_from_gguf(file)["rope_parameters"]["attention_factor"]
    assert found == pytest.approx(math.sqrt(1 + 1 / 3))  # 256 = 64 · 4, and 64 = 4³
    del file.metadata["phi3.rope.scaling.attn_factor"]
    assert config_from_gguf(file)["rope_parameters"]["attention_factor"] == 1


@pytest.mark.parametrize("quantization", ["Q8_0", "Q4_0"])
def test_logits_equal_what_transformers_reads(quantization, tmp_path):
    """Of Phi-3; it reads no RoPE but the plain one, and no window."""
    path = write(tmp_path, make_for_file("phi3"), gguf.GGMLQuantizationType[quantization])
    assert_equal_logits(read_gguf_by_transformers(path), load(path), prompts=PROMPTS)


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_it_answers(family, dtype, tmp_path):
    path = write(tmp_path, make_for_file(family, rope_parameters=PART), gguf.GGMLQuantizationType.Q8_0)
    with registry.load(path, dtype=dtype, device="cpu", kv_cache_memory="4MiB") as llm:
        (output,) = llm.generate(TextGenerationRequest(prompt="hello"), max_new_tokens=5, ignore_eos=True)
        assert len(output.tokens) == 5
        assert llm.tokenizer.eos_token_ids == {len(TOKENS) - 1}


@pytest.mark.parametrize(
    ("family", "key"), [("phi", "attention.layer_norm_epsilon"), ("phi3", "attention.layer_norm_rms_epsilon")]
)
def test_what_is_missing_is_named(family, key, tmp_path):
    file = open_gguf(write(tmp_path, make_for_file(family)))
    del file.metadata[f"{FILES[family]}.{key}"]
    with pytest.raises(CorruptCheckpointError, match=f"lacks '{FILES[family]}.{key}'"):
        config_from_gguf(file)


@pytest.mark.parametrize("count", [0, 9, "8", -2], ids=str)
def test_more_numbers_than_a_head_has_cannot_be_rotated(count, tmp_path):
    file = open_gguf(write(tmp_path, make_for_file("phi")))
    file.metadata["phi2.rope.dimension_count"] = count
    with pytest.raises(CorruptCheckpointError, match="rotates more of each head than there is, or nothing"):
        config_from_gguf(file)


@pytest.mark.parametrize(("count", "head_dim"), [(32, 80), (30, 44), (6, 47), (48, 96)])
def test_as_many_numbers_are_rotated_as_the_file_says(count, head_dim, tmp_path):
    file = open_gguf(write(tmp_path, make_for_file("phi")))
    file.metadata.update({"phi2.rope.dimension_count": count, "phi2.attention.key_length": head_dim})
    assert int(head_dim * config_from_gguf(file)["rope_parameters"]["partial_rotary_factor"]) == count


def test_half_of_the_factors_is_refused(tmp_path):
    path = write(tmp_path, make_for_file("phi3"), extra_tensors={"rope_factors_long.weight": np.float32(LONG)})
    with pytest.raises(CorruptCheckpointError, match=r"lacks 'rope_factors_short\.weight'"):
        config_from_gguf(open_gguf(path))


@pytest.mark.parametrize(
    ("values", "found"),
    [({"factor": 2.0}, "longrope by 2.0"), ({"type": "yarn"}, "yarn by 1.0"), ({"type": "linear"}, "linear by 1.0")],
    ids=str,
)
def test_factors_and_another_scaling_are_refused(values, found, tmp_path):
    said = {f"rope__scaling__{key}": value for key, value in values.items()}
    path = write(tmp_path, make_for_file("phi3", rope_parameters=LONGROPE), **said)
    with pytest.raises(UnsupportedModelError, match=f"scales RoPE twice .found: rope_factors and {found}"):
        config_from_gguf(open_gguf(path))


def test_another_number_of_factors_is_refused(tmp_path):
    path = write(tmp_path, make_for_file("phi3", rope_parameters=LONGROPE), rope__dimension_count=4)
    with pytest.raises(UnsupportedModelError, match="another number of 'short_factor'"):
        load(path)


def test_a_part_beside_the_fused_layer_is_reported(tmp_path):
    path = write(tmp_path, make_for_file("phi3"), extra_tensors={"blk.0.ffn_gate.weight": np.ones((64, 32), "f4")})
    with pytest.raises(CheckpointMismatchError, match=r"layers\.0\.mlp\.gate_up_proj"):
        load(path)
