"""GGUF files of OLMo: the logits of the transformers model they were written from."""

import gguf
import pytest
import torch
from families import assert_equal_logits, load_gguf
from gguf_files import TOKENS, write_gguf
from olmo.tiny_olmo import CLASSES, make

from pipezoo import registry
from pipezoo_core.errors import CorruptCheckpointError, UnsupportedModelError
from pipezoo_core.request import TextGenerationRequest
from pipezoo_core.weights import open_gguf
from pipezoo_olmo.config import config_from_gguf
from pipezoo_olmo.plugin import pipezoo_architectures

pytestmark = pytest.mark.matrix

ARCHITECTURES = {architecture.model_types[0]: architecture for architecture in pipezoo_architectures()}
FILES = {"olmo": "olmo", "olmo2": "olmo2", "olmo3": "olmo2"}
NAMES = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}
PATTERN = {"layer_types": None, "num_hidden_layers": 5}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
LOCAL = {"rope_type": "default", "rope_theta": 1e4}


def make_for_file(family, **changes):
    own = {**PATTERN, "rope_parameters": {"full_attention": LOCAL, "sliding_attention": LOCAL}}
    return make(family, **{"intermediate_size": 64, **(own if family == "olmo3" else {}), **changes})


def write(folder, reference, quantization=gguf.GGMLQuantizationType.F32, **metadata):
    config = reference.config
    is_first, said = config.model_type == "olmo", {}
    if is_first:
        said = {"attention__layer_norm_epsilon": 1e-5, "attention__clamp_kqv": config.clip_qkv}
        config.rms_norm_eps = 1e-5  # the writer's, and not read
    elif config.model_type == "olmo3":
        said = {"attention__sliding_window": config.sliding_window}
    said = {key: value for key, value in {**said, **metadata}.items() if value is not None}
    architecture = FILES[config.model_type]
    named = {f"{architecture}.{key.replace('__', '.')}": value for key, value in said.items()}
    return write_gguf(
        folder / "m.gguf", reference, architecture, quantization, named, pre="smollm", permutes=is_first, names=NAMES
    )


CONFIGS = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "multi_query": {"num_key_value_heads": 1},
    "clip": {"clip_qkv": 0.5},
    "eps": {"rms_norm_eps": 1e-3},
}


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(family, name, tmp_path):
    reference = make_for_file(family, **CONFIGS[name])
    assert_equal_logits(reference, load_gguf(ARCHITECTURES[FILES[family]], write(tmp_path, reference)))


def test_layers_without_a_window_are_scaled_by_themselves_in_olmo3(tmp_path):
    reference = make_for_file("olmo3", rope_parameters={"full_attention": YARN, "sliding_attention": LOCAL})
    scaling = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}
    path = write(tmp_path, reference, **scaling, rope__scaling__original_context_length=64)
    assert_equal_logits(reference, load_gguf(ARCHITECTURES["olmo2"], path))


def kinds_of(file):
    return "".join("w" if kind == "sliding_attention" else "f" for kind in config_from_gguf(file)["layer_types"])


@pytest.mark.parametrize("pattern", [2, [False, True, True, False, True]], ids=str)
def test_another_pattern(pattern, tmp_path):
    file = open_gguf(write(tmp_path, make_for_file("olmo3")))
    assert kinds_of(file) == "wwwfw"
    file.metadata["olmo2.attention.sliding_window_pattern"] = pattern
    assert kinds_of(file) == ("wfwfw" if pattern == 2 else "fwwfw")


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("quantization", ["Q8_0", "Q4_0"])
def test_logits_equal_those_of_the_dequantized_weights(family, quantization, tmp_path):
    kind, reference = gguf.GGMLQuantizationType[quantization], make_for_file(family)
    path = write(tmp_path, reference, kind)
    with torch.no_grad():
        for parameter in reference.parameters():
            if parameter.ndim == 2:
                packed = gguf.quants.quantize(parameter.numpy(), kind)
                parameter.copy_(torch.from_numpy(gguf.quants.dequantize(packed, kind).copy()))
    assert_equal_logits(reference, load_gguf(ARCHITECTURES[FILES[family]], path))


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_it_answers(family, dtype, tmp_path):
    path = write(tmp_path, make_for_file(family), gguf.GGMLQuantizationType.Q8_0)
    with registry.load(path, dtype=dtype, device="cpu", kv_cache_memory="4MiB") as llm:
        (output,) = llm.generate(TextGenerationRequest(prompt="hello"), max_new_tokens=5, ignore_eos=True)
        assert len(output.tokens) == 5
        assert llm.tokenizer.eos_token_ids == {len(TOKENS) - 1}


def test_what_is_missing_is_named(tmp_path):
    for family, key in (("olmo", "layer_norm_epsilon"), ("olmo2", "layer_norm_rms_epsilon")):
        file = open_gguf(write(tmp_path, make_for_file(family)))
        del file.metadata[f"{family}.attention.{key}"]
        with pytest.raises(CorruptCheckpointError, match=rf"lacks '{family}\.attention\.{key}'"):
            config_from_gguf(file)


def test_other_norms_are_refused(tmp_path):
    file = open_gguf(write(tmp_path, make_for_file("olmo"), attention__layer_norm_epsilon=1e-6))
    with pytest.raises(UnsupportedModelError, match="norms that OLMo has not"):
        config_from_gguf(file)
