"""GGUF files of GPT-2 and GPT-NeoX, written as llama.cpp's converters do, against transformers.

The names of the tensors are those of the `gguf` package.
"""

from functools import partial

import gguf
import numpy as np
import pytest
import torch
from families import assert_equal_logits, expected_logits, load_gguf, read_gguf_by_transformers
from gguf_files import END
from gpt import gpt_gguf, test_bloom_gguf, test_falcon_gguf, tiny_bloom, tiny_falcon, tiny_gpt, tiny_gpt_neox
from gpt.architectures import ARCHITECTURES
from gpt.tiny_gpt_neox import rope
from lora.peft_adapters import merged, save_adapter
from tiny_models import logits_of

from pipezoo import registry
from pipezoo_core.config import LoRAConfig
from pipezoo_core.errors import CorruptCheckpointError, UnsupportedModelError
from pipezoo_core.request import TextGenerationRequest
from pipezoo_core.weights import open_gguf

pytestmark = pytest.mark.matrix

F32 = gguf.GGMLQuantizationType.F32
FILES = {"gpt2": gguf.MODEL_ARCH.GPT2, "gpt_neox": gguf.MODEL_ARCH.GPTNEOX}
PRE = {"gpt2": "gpt-2", "gpt_neox": "olmo"}
NUM_LAYERS = 3
POSITIONS = 1024  # as many as transformers makes of any GPT-2 file


def gpt2(**changes):
    return tiny_gpt.make(**{"n_positions": POSITIONS, **changes})


def gpt_neox(**changes):
    return tiny_gpt_neox.make(**changes)


MAKE = {"gpt2": gpt2, "gpt_neox": gpt_neox}


def metadata_of(config):
    said = {
        "block_count": NUM_LAYERS,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "attention.head_count": config.num_attention_heads,
    }
    if config.model_type == "gpt2":
        feed_forward = {"feed_forward_length": 4 * config.n_embd}
        return {**said, **feed_forward, "attention.layer_norm_epsilon": config.layer_norm_epsilon}
    head_dim = config.hidden_size // config.num_attention_heads
    return {
        **said,
        "feed_forward_length": config.intermediate_size,
        "rope.dimension_count": int(config.rope_parameters["partial_rotary_factor"] * head_dim),
        "use_parallel_residual": config.use_parallel_residual,
        "attention.layer_norm_epsilon": config.layer_norm_eps,
    }


def converted(name, values, config):
    """What the converter makes of a tensor: GPT-2's matrices transposed, GPT-NeoX's heads sorted by part."""
    if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return values.T
    if "query_key_value" in name:
        heads = values.reshape(config.num_attention_heads, 3, -1, *values.shape[1:])
        return np.concatenate([heads[:, i].reshape(-1, *values.shape[1:]) for i in range(3)])
    return values


def write(folder, reference, kind=F32, **metadata):
    """Writes a model as a file; a head that is tied is left out."""
    config = reference.config
    architecture = FILES[config.model_type]
    names = gguf.get_tensor_name_map(architecture, NUM_LAYERS)
    sizes = {**metadata_of(config), **{key.replace("__", "."): value for key, value in metadata.items()}}
    tensors = {
        names.get_name(name, try_suffixes=(".weight", ".bias")): converted(name, tensor.numpy(), config)
        for name, tensor in reference.state_dict().items()
        if name != "lm_head.weight" or not config.tie_word_embeddings
    }
    prefix, pre = gguf.MODEL_ARCH_NAMES[architecture], PRE[config.model_type]
    return gpt_gguf.write(folder / "m.gguf", prefix, sizes, tensors, kind, pre=pre)


CONFIGS = {
    "gpt2": ("gpt2", {}),
    "gpt2-untied": ("gpt2", {"tie_word_embeddings": False}),
    "gpt2-eps": ("gpt2", {"layer_norm_epsilon": 0.1}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox-tied": ("gpt_neox", {"tie_word_embeddings": True}),
    "gpt_neox-eps": ("gpt_neox", {"layer_norm_eps": 0.1}),
    "gpt_neox-sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "gpt_neox-part": ("gpt_neox", {"rope_parameters": rope(partial_rotary_factor=0.75)}),
    "gpt_neox-whole": ("gpt_neox", {"rope_parameters": rope(partial_rotary_factor=1.0)}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name, tmp_path):
    family, changes = CONFIGS[name]
    reference = MAKE[family](**changes)
    assert_equal_logits(reference, load_gguf(ARCHITECTURES[family], write(tmp_path, reference)))


@pytest.mark.parametrize("quantization", ["F32", "Q8_0"])
def test_gpt2_is_what_transformers_reads(quantization, tmp_path):
    path = write(tmp_path, gpt2(), gguf.GGMLQuantizationType[quantization])
    assert_equal_logits(read_gguf_by_transformers(path), load_gguf(ARCHITECTURES["gpt2"], path))


@pytest.mark.parametrize("family", MAKE)
@pytest.mark.parametrize("quantization", ["BF16", "Q4_0"])
def test_logits_equal_those_of_the_dequantized_weights(family, quantization, tmp_path):
    kind, reference = gguf.GGMLQuantizationType[quantization], MAKE[family]()
    path = write(tmp_path, reference, kind)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if parameter.ndim == 2 and "wpe" not in name:
                values = parameter.T if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else parameter
                packed = gguf.quants.quantize(np.ascontiguousarray(values.numpy()), kind)
                values.copy_(torch.from_numpy(gguf.quants.dequantize(packed, kind).copy()))
    assert_equal_logits(reference, load_gguf(ARCHITECTURES[family], path), chunks=(None,))


ADAPTED = {
    "gpt2": (gpt2, write, "c_attn"),
    "gpt_neox": (gpt_neox, write, "query_key_value"),
    "bloom": (tiny_bloom.make, test_bloom_gguf.write, "query_key_value"),
    "falcon": (tiny_falcon.make, test_falcon_gguf.write, "query_key_value"),
    "falcon-40b": (partial(tiny_falcon.make, **tiny_falcon.NEW), test_falcon_gguf.write, "query_key_value"),
}


@pytest.mark.parametrize("name", ADAPTED)
def test_adapters_equal_merged_models(name, tmp_path):
    """PEFT's fused layers have the order of the checkpoint, not of the file."""
    make, write_file, fused = ADAPTED[name]
    reference = make()
    save_adapter(reference, tmp_path / "a", target_modules=[fused], fan_in_fan_out=name == "gpt2")
    lora = LoRAConfig(lora_paths=[f"a={tmp_path / 'a'}"])
    model = load_gguf(ARCHITECTURES[reference.config.model_type], write_file(tmp_path, reference), lora=lora)
    (found,) = logits_of(model, [[3, 1, 4, 1, 5]], loras=["a"])
    expected = expected_logits(merged(reference, tmp_path / "a"), [3, 1, 4, 1, 5])
    assert (found - expected).abs().max() < 1e-4
    assert (expected - expected_logits(reference, [3, 1, 4, 1, 5])).abs().max() > 0.1


def test_gpt_neox_without_biases_of_attention(tmp_path):
    reference = gpt_neox(attention_bias=False)
    assert_equal_logits(reference, load_gguf(ARCHITECTURES["gpt_neox"], write(tmp_path, reference)), chunks=(None,))


def test_theta_and_scaling_of_gpt_neox(tmp_path):
    reference = gpt_neox(rope_parameters=rope(rope_type="linear", rope_theta=100.0, factor=4.0))
    scaling = {"rope__freq_base": 100.0, "rope__scaling__type": "linear", "rope__scaling__factor": 4.0}
    path = write(tmp_path, reference, **scaling)
    assert_equal_logits(reference, load_gguf(ARCHITECTURES["gpt_neox"], path), chunks=(None,))


@pytest.mark.parametrize(("rotated", "head_dim"), [(6, 47), (2, 49), (20, 80), (24, 96)])
def test_as_many_numbers_are_rotated_as_the_file_says(rotated, head_dim, tmp_path):
    """6 / 47 · 47 is less than 6 in floats."""
    path = write(tmp_path, gpt_neox(), attention__key_length=head_dim, rope__dimension_count=rotated)
    part = ARCHITECTURES["gpt_neox"].config_from_gguf(open_gguf(path))["rope_parameters"]["partial_rotary_factor"]
    assert int(head_dim * part) == rotated


@pytest.mark.parametrize("family", MAKE)
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_it_answers(family, dtype, tmp_path):
    path = write(tmp_path, MAKE[family](), gguf.GGMLQuantizationType.Q8_0)
    with registry.load(path, dtype=dtype, device="cpu", kv_cache_memory="4MiB") as llm:
        (output,) = llm.generate(TextGenerationRequest(prompt="hello"), max_new_tokens=5, ignore_eos=True)
        assert len(output.tokens) == 5
        assert llm.tokenizer.eos_token_ids == {END}
        assert llm.tokenizer.decode(llm.tokenizer.encode("hello, it's 12.")) == "hello, it's 12."


@pytest.mark.parametrize("family", MAKE)
def test_what_is_missing_is_named(family, tmp_path):
    file = open_gguf(write(tmp_path, MAKE[family]()))
    key = f"{gguf.MODEL_ARCH_NAMES[FILES[family]]}.attention.layer_norm_epsilon"
    del file.metadata[key]
    with pytest.raises(CorruptCheckpointError, match=rf"lacks '{key}'"):
        ARCHITECTURES[family].config_from_gguf(file)


def test_heads_of_another_size_are_refused(tmp_path):
    path = write(tmp_path, gpt_neox(), attention__key_length=16)
    with pytest.raises(UnsupportedModelError, match="head_dim that GPT-NeoX has not"):
        load_gguf(ARCHITECTURES["gpt_neox"], path)


def test_a_part_of_no_size_is_refused(tmp_path):
    file = open_gguf(write(tmp_path, gpt_neox(), rope__dimension_count=0))
    with pytest.raises(CorruptCheckpointError, match="rotates more of each head than there is, or nothing"):
        ARCHITECTURES["gpt_neox"].config_from_gguf(file)
