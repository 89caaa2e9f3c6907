"""GGUF files of llama models: the same logits as the transformers model they were written from."""

import math
import struct

import gguf
import numpy as np
import pytest
import torch
from families import assert_equal_logits, load_gguf
from gguf_files import TOKENS, gguf_name, write_llama_gguf
from tiny_models import make_llama

from pipezoo_core.config import SupportedEncoding
from pipezoo_core.errors import CorruptCheckpointError, UnsupportedCheckpointError, UnsupportedModelError
from pipezoo_core.layers.quantized import QuantizedProduct
from pipezoo_core.weights import open_gguf
from pipezoo_llama.config import config_from_gguf
from pipezoo_llama.plugin import pipezoo_architectures

pytestmark = pytest.mark.matrix


def make(**changes):
    return make_llama(vocab_size=len(TOKENS), intermediate_size=64, **changes)


def load(path, encoding=SupportedEncoding.float32, **settings):
    return load_gguf(*pipezoo_architectures(), path, encoding, **settings)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 4},
        {"head_dim": 16},
        {"attention_bias": True, "mlp_bias": True},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    ],
    ids=["plain", "tied", "multi_head", "head_dim", "bias", "theta"],
)
def test_logits_equal_transformers(changes, tmp_path):
    reference = make(**changes)
    assert_equal_logits(reference, load(write_llama_gguf(tmp_path / "m.gguf", reference)))


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantized_weights_equal_transformers_on_the_dequantized_ones(kind, tmp_path):
    reference, quantization = make(), gguf.GGMLQuantizationType[kind]
    path = write_llama_gguf(tmp_path / "m.gguf", reference, quantization)
    with torch.no_grad():
        for parameter in reference.parameters():
            if parameter.ndim == 2:
                packed = gguf.quants.quantize(parameter.numpy(), quantization)
                parameter.copy_(torch.from_numpy(gguf.quants.dequantize(packed, quantization).copy()))
    assert_equal_logits(reference, load(path))


@pytest.mark.parametrize("linear", ["torch", "auto"])
def test_int8_holds_the_numbers_of_a_q8_0_file(linear, tmp_path):
    """Also those that bfloat16, the precision of the activations, would round."""
    path = write_llama_gguf(tmp_path / "m.gguf", make(tie_word_embeddings=True), gguf.GGMLQuantizationType.Q8_0)
    product = load(path, SupportedEncoding.int8, linear=linear).module.lm_head._product
    numbers = open_gguf(path).weights["token_embd.weight"].load()
    assert not torch.equal(numbers.bfloat16().float(), numbers)
    rows = product.rows(torch.arange(len(numbers)))
    torch.testing.assert_close(rows, numbers.bfloat16(), atol=0, rtol=0)
    if isinstance(product, QuantizedProduct):
        assert torch.equal(product.dequantized(slice(None)), numbers)


def with_rope(values):
    return {f"llama.rope.{key}": value for key, value in values.items()}


@pytest.mark.parametrize(
    "values",
    [
        {"scaling.type": "linear", "scaling.factor": 4.0},
        {"scaling.type": "linear", "scaling.factor": 4.0, "scaling.finetuned": True, "scaling.attn_factor": 1.0},
        {"scaling.factor": 4.0, "scaling.original_context_length": 64},
        {"scale_linear": 4.0},
        {"scaling.factor": 4.0, "scale_linear": 2.0},
    ],
    ids=str,
)
def test_linear_rope_scaling(values, tmp_path):
    """Linear is what llama.cpp takes a scaling for whose type the file leaves out."""
    reference = make(rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0})
    assert_equal_logits(reference, load(write_llama_gguf(tmp_path / "m.gguf", reference, metadata=with_rope(values))))


@pytest.mark.parametrize(
    "values",
    [
        {"dimension_count": 8},
        {"scaling.type": "none", "scaling.factor": 4.0},
        {"scaling.type": "linear"},
        {"scaling.type": "linear", "scaling.factor": 0.0},
        {"scale_linear": 1.0},
    ],
    ids=str,
)
def test_no_rope_scaling(values, tmp_path):
    reference = make()
    assert_equal_logits(reference, load(write_llama_gguf(tmp_path / "m.gguf", reference, metadata=with_rope(values))))


YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("values", "changes"),
    [
        ({}, {}),
        ({"scaling.yarn_ext_factor": 1.0, "scaling.attn_factor": 1.0, "scaling.yarn_log_multiplier": 0.0}, {}),
        ({"scaling.yarn_attn_factor": 1.25}, {"attention_factor": 1.25}),
        ({"scaling.yarn_beta_fast": 2.0}, {"beta_fast": 2.0}),
        ({"scaling.yarn_beta_slow": 0.5}, {"beta_slow": 0.5}),
    ],
    ids=str,
)
def test_yarn(values, changes, tmp_path):
    reference = make(rope_parameters={**YARN, **changes}, head_dim=32)
    values = {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 64, **values}
    assert_equal_logits(reference, load(write_llama_gguf(tmp_path / "m.gguf", reference, metadata=with_rope(values))))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dimension_count": 4}, "a part of each head .found: 4; allowed: 8"),
        ({"scaling.type": "longrope"}, "unknown way .found: longrope"),
        ({"scaling.type": "dynamic", "scaling.factor": 2.0}, "unknown way .found: dynamic"),
        ({"scaling.attn_factor": 1.5}, r"llama\.rope\.scaling\.attn_factor = 1\.5"),
        ({"scaling.type": "yarn", "scaling.yarn_ext_factor": 0.5}, "yarn_ext_factor = 0.5"),
        ({"scaling.type": "yarn", "scaling.yarn_log_multiplier": 0.5}, "yarn_log_multiplier = 0.5"),
        ({"scaling.factor": 4.0, "scaling.yarn_beta_fast": 16.0}, "yarn_beta_fast = 16"),
        ({"freq_base_of_some_layers": 2.0}, r"freq_base_of_some_layers = 2\.0"),
    ],
    ids=str,
)
def test_rope_that_no_config_can_say_is_refused(values, message, tmp_path):
    path = write_llama_gguf(tmp_path / "m.gguf", make(), metadata=with_rope(values))
    with pytest.raises(UnsupportedModelError, match=message):
        config_from_gguf(open_gguf(path))


@pytest.mark.parametrize("factor", ["4.0", math.nan, -1.0])
def test_a_rope_factor_that_is_no_number_is_refused(factor, tmp_path):
    path = write_llama_gguf(tmp_path / "m.gguf", make(), metadata=with_rope({"scaling.factor": factor}))
    with pytest.raises(UnsupportedModelError, match="'factor'"):
        load(path)


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def divisors(reference):
    """What llama.cpp's converter stores of Llama 3.1's scaling: unscaled over scaled frequencies."""
    dim = reference.config.head_dim
    plain = 1.0 / 500000.0 ** (torch.arange(0, dim, 2) / dim)
    return (plain / reference.model.rotary_emb.inv_freq).numpy()


def test_llama3_rope_is_recognized_in_its_divisors(tmp_path):
    reference = make(rope_parameters=LLAMA3, head_dim=32)
    path = write_llama_gguf(tmp_path / "m.gguf", reference, extra_tensors={"rope_freqs.weight": divisors(reference)})
    assert_equal_logits(reference, load(path))


def test_other_rope_divisors_are_refused(tmp_path):
    reference = make(rope_parameters=LLAMA3, head_dim=32)
    path = write_llama_gguf(
        tmp_path / "m.gguf", reference, extra_tensors={"rope_freqs.weight": divisors(reference) * 1.5}
    )
    with pytest.raises(UnsupportedModelError, match="rope_freqs"):
        load(path)


@pytest.mark.parametrize("shape", [(15,), (16, 1), (4, 4)])
def test_rope_divisors_of_another_shape_are_refused(shape, tmp_path):
    extra = {"rope_freqs.weight": np.ones(shape, np.float32)}
    path = write_llama_gguf(tmp_path / "m.gguf", make(head_dim=32), extra_tensors=extra)
    with pytest.raises(UnsupportedModelError, match="rope_freqs"):
        config_from_gguf(open_gguf(path))


def test_longrope_is_read_from_its_factors(tmp_path):
    factors = {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [2.0, 3.5, 5.0, 6.0]}
    longrope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64, **factors}
    reference = make(rope_parameters={**longrope, "attention_factor": 1.25})
    extra = {f"rope_factors_{name.split('_')[0]}.weight": np.float32(values) for name, values in factors.items()}
    said = with_rope({"scaling.attn_factor": 1.25, "scaling.original_context_length": 64})
    path = write_llama_gguf(tmp_path / "m.gguf", reference, metadata=said, extra_tensors=extra)
    assert_equal_logits(reference, load(path), chunks=(None,))


def test_rope_that_is_scaled_twice_is_refused(tmp_path):
    reference = make(rope_parameters=LLAMA3, head_dim=32)
    path = write_llama_gguf(
        tmp_path / "m.gguf",
        reference,
        metadata=with_rope({"scaling.factor": 2.0}),
        extra_tensors={"rope_freqs.weight": divisors(reference)},
    )
    with pytest.raises(UnsupportedModelError, match=r"scales RoPE twice .found: rope_freqs and linear by 2"):
        config_from_gguf(open_gguf(path))


def test_reader_agrees_with_the_gguf_package(tmp_path):
    path = write_llama_gguf(tmp_path / "m.gguf", make(), gguf.GGMLQuantizationType.Q8_0)
    ours, reference = open_gguf(path), gguf.GGUFReader(path)
    for name, field in reference.fields.items():
        if not name.startswith("GGUF."):
            assert ours.metadata[name] == field.contents(), name
    assert set(ours.weights) == {tensor.name for tensor in reference.tensors}
    for tensor in reference.tensors:
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert torch.equal(ours.weights[tensor.name].load(), torch.from_numpy(expected.copy())), tensor.name


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.3, 0.9, 0.9999])
def test_truncated_file_is_refused(share, tmp_path):
    path = write_llama_gguf(tmp_path / "m.gguf", make())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CorruptCheckpointError, match=r"m\.gguf is not a whole GGUF file"):
        open_gguf(path)


def test_damaged_headers_are_refused(tmp_path):
    """Each byte of the beginning changed in turn: an error of ours, or a file that still opens."""
    path = write_llama_gguf(tmp_path / "m.gguf", make())
    whole = path.read_bytes()
    refused = 0
    for at in range(200):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            open_gguf(path)
        except (CorruptCheckpointError, UnsupportedCheckpointError):
            refused += 1
    assert refused > 20


def text(value):
    return struct.pack("<Q", len(value)) + value


def entry(key, type_, value):
    """A file with one entry of metadata and no tensors."""
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text(key) + struct.pack("<I", type_) + value


def tensor(dims, type_=0):
    """A file without metadata, and one tensor, of which 4 KiB are there."""
    info = text(b"t") + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, type_, 0)
    return b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + info + bytes(4096)


DAMAGED = {
    "no alignment": entry(b"general.alignment", 4, struct.pack("<I", 0)),
    "negative alignment": entry(b"general.alignment", 5, struct.pack("<i", -32)),
    "fractional alignment": entry(b"general.alignment", 6, struct.pack("<f", 32.0)),
    "text as alignment": entry(b"general.alignment", 8, text(b"32")),
    "deeply nested": entry(b"a", 9, struct.pack("<IQ", 9, 1) * 5000),
    "endless list": entry(b"a", 9, struct.pack("<IQ", 9, 2**64 - 1)),
    "endless numbers": entry(b"a", 9, struct.pack("<IQ", 12, 2**64 - 1)),
    "dimension above int64": tensor([2**63]),
    "numbers above int64": tensor([2**32, 2**32]),
    "no rows": tensor([2**63, 0]),
    "no columns": tensor([0, 2**63]),
    "part of a block": tensor([33, 2], gguf.GGMLQuantizationType.Q8_0),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_values_that_make_no_sense_are_refused(damage, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(DAMAGED[damage])
    with pytest.raises(CorruptCheckpointError, match=r"m\.gguf is not a whole GGUF file .found: .") as caught:
        open_gguf(path)
    assert caught.value.__cause__ is not None


def test_the_files_that_are_damaged_above_are_sound_otherwise(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(entry(b"general.alignment", 4, struct.pack("<I", 64)))
    assert open_gguf(path).metadata == {"general.alignment": 64}
    path.write_bytes(entry(b"a", 9, struct.pack("<IQ", 9, 1) * 5 + struct.pack("<IQi", 5, 1, 7)))
    assert open_gguf(path).metadata == {"a": [[[[[[7]]]]]]}
    path.write_bytes(tensor([64, 2], gguf.GGMLQuantizationType.Q8_0))
    assert open_gguf(path).weights["t"].load().shape == (2, 64)


def test_missing_metadata_is_named(tmp_path):
    file = open_gguf(write_llama_gguf(tmp_path / "m.gguf", make()))
    del file.metadata["llama.block_count"]
    with pytest.raises(CorruptCheckpointError, match=r"llama\.block_count"):
        config_from_gguf(file)


@pytest.mark.parametrize("value", [0, -4, 4.0, "4", [4, 4, 4], None])
@pytest.mark.parametrize("key", ["attention.head_count", "embedding_length", "block_count", "attention.key_length"])
def test_what_is_no_size_is_named(key, value, tmp_path):
    file = open_gguf(write_llama_gguf(tmp_path / "m.gguf", make()))
    file.metadata[f"llama.{key}"] = value
    with pytest.raises(CorruptCheckpointError, match=f"llama.{key} is no size"):
        config_from_gguf(file)


def test_experts_of_which_the_file_does_not_say_how_many(tmp_path):
    file = open_gguf(write_llama_gguf(tmp_path / "m.gguf", make()))
    file.weights._tensors["blk.0.ffn_gate_inp.weight"] = file.weights["blk.0.ffn_gate.weight"]
    with pytest.raises(UnsupportedModelError, match=r"mixture of experts, which Llama is not.*no llama\.expert_count"):
        config_from_gguf(file)


def test_a_head_of_another_size_than_its_share_of_the_hidden_state(tmp_path):
    """What would be its size is not needed where the file says it."""
    file = open_gguf(write_llama_gguf(tmp_path / "m.gguf", make(head_dim=16)))
    assert config_from_gguf(file)["head_dim"] == 16
    del file.metadata["llama.attention.key_length"]
    assert config_from_gguf(file)["head_dim"] == 8


def test_names_of_the_writer_cover_all_weights():
    assert len({gguf_name(name) for name in make().state_dict()}) == len(make().state_dict())
