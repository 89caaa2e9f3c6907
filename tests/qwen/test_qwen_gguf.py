"""GGUF files of Qwen2 and Qwen3: the logits of the transformers model they were written from, and of what it reads."""

import gguf
import pytest
from families import assert_equal_logits, load_gguf, read_gguf_by_transformers
from gguf_files import TOKENS, write_gguf
from qwen.tiny_qwen import ARCHITECTURES, CLASSES, make

from pipezoo import registry
from pipezoo_core.errors import CorruptCheckpointError, UnsupportedModelError
from pipezoo_core.request import TextGenerationRequest
from pipezoo_core.weights import open_gguf
from pipezoo_qwen.config import config_from_gguf

pytestmark = pytest.mark.matrix

Q8_0 = gguf.GGMLQuantizationType.Q8_0
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}


def write(folder, reference, quantization=gguf.GGMLQuantizationType.F32, **metadata):
    family = reference.config.model_type
    named = {f"{family}.{key.replace('__', '.')}": value for key, value in metadata.items()}
    return write_gguf(folder / "m.gguf", reference, family, quantization, named, pre="qwen2")


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 1},
        {"head_dim": 32},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        {"rms_norm_eps": 1e-3},
    ],
    ids=["plain", "tied", "multi_query", "head_dim", "theta", "eps"],
)
def test_logits_equal_transformers(family, changes, tmp_path):
    reference = make(family, **changes)
    assert_equal_logits(reference, load_gguf(ARCHITECTURES[family], write(tmp_path, reference)))


@pytest.mark.parametrize("family", CLASSES)
def test_yarn(family, tmp_path):
    reference = make(family, rope_parameters=YARN)
    scaling = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}
    path = write(tmp_path, reference, **scaling, rope__scaling__original_context_length=64)
    assert_equal_logits(reference, load_gguf(ARCHITECTURES[family], path))


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("quantization", ["Q8_0", "Q4_0", "BF16"])
def test_logits_equal_what_transformers_reads(family, quantization, tmp_path):
    size = {"head_dim": 128} if family == "qwen3" else {}  # transformers does not read it
    path = write(tmp_path, make(family, intermediate_size=64, **size), gguf.GGMLQuantizationType[quantization])
    theirs = read_gguf_by_transformers(path)
    assert theirs.config.model_type == family
    assert_equal_logits(theirs, load_gguf(ARCHITECTURES[family], path))


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_it_answers(family, dtype, tmp_path):
    path = write(tmp_path, make(family, intermediate_size=64), Q8_0)
    with registry.load(path, dtype=dtype, device="cpu", kv_cache_memory="4MiB") as llm:
        (output,) = llm.generate(TextGenerationRequest(prompt="hello"), max_new_tokens=5, ignore_eos=True)
        assert len(output.tokens) == 5
        assert llm.tokenizer.eos_token_ids == {len(TOKENS) - 1}


def test_what_is_missing_is_named(tmp_path):
    file = open_gguf(write(tmp_path, make("qwen3")))
    del file.metadata["qwen3.attention.layer_norm_rms_epsilon"]
    with pytest.raises(CorruptCheckpointError, match=r"lacks 'qwen3\.attention\.layer_norm_rms_epsilon'"):
        config_from_gguf(file)


def test_rope_that_no_config_can_say_is_refused(tmp_path):
    file = open_gguf(write(tmp_path, make("qwen2"), rope__scaling__type="longrope"))
    with pytest.raises(UnsupportedModelError, match="scales RoPE in an unknown way"):
        config_from_gguf(file)
