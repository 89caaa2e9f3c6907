"""GGUF files of Gemma: the logits of the transformers model they were written from, and of what it reads."""

import gguf
import pytest
from families import PROMPTS, assert_equal_logits, assert_matters, load_gguf, read_gguf_by_transformers
from gemma.tiny_gemma import CLASSES, WINDOWED, make
from gguf_files import TOKENS, write_gguf

from pipezoo import registry
from pipezoo_core.errors import CorruptCheckpointError, UnsupportedModelError
from pipezoo_core.request import TextGenerationRequest
from pipezoo_core.weights import open_gguf
from pipezoo_gemma.config import GemmaConfig, config_from_gguf
from pipezoo_gemma.huggingface_config import Gemma2HuggingFaceConfig, text_part
from pipezoo_gemma.plugin import pipezoo_architectures

pytestmark = pytest.mark.matrix

ARCHITECTURES = {architecture.model_types[0]: architecture for architecture in pipezoo_architectures()}
NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
ALTERNATING = {"sliding_window": 12, "query_pre_attn_scalar": 32, "layer_types": None, "num_hidden_layers": 7}
LOCAL = {"rope_type": "default", "rope_theta": 10000.0}


def make_alternating(family, **changes):
    """A model whose layers are of the kinds that llama.cpp knows for it."""
    own = ALTERNATING if family in WINDOWED else {}
    return make(family, **{"intermediate_size": 64, **own, **changes})


def write(folder, reference, quantization=gguf.GGMLQuantizationType.F32, **metadata):
    config = reference.config
    family, said = config.model_type.removesuffix("_text"), {}
    if family in WINDOWED:
        said["attention__sliding_window"] = config.sliding_window
        said["final_logit_softcapping"] = config.final_logit_softcapping
        said["attn_logit_softcapping"] = config.attn_logit_softcapping
    said = {key: value for key, value in {**said, **metadata}.items() if value is not None}
    named = {f"{family}.{key.replace('__', '.')}": value for key, value in said.items()}
    names = NAMES if family in WINDOWED else None
    return write_gguf(
        folder / "m.gguf", reference, family, quantization, named, pre="smollm", names=names, norm_offset=1
    )


CONFIGS = {
    "plain": {},
    "untied": {"tie_word_embeddings": False},
    "multi_query": {"num_key_value_heads": 1},
    "eps": {"rms_norm_eps": 1e-3},
}


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(family, name, tmp_path):
    reference = make_alternating(family, **CONFIGS[name])
    assert_equal_logits(reference, load_gguf(ARCHITECTURES[family], write(tmp_path, reference)))


@pytest.mark.parametrize(
    "changes",
    [{"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}, {"sliding_window": 5}],
    ids=["softcaps", "window"],
)
def test_what_a_file_says_of_gemma2(changes, tmp_path):
    reference = make_alternating("gemma2", **changes)
    assert_matters(make_alternating("gemma2"), reference)
    assert_equal_logits(reference, load_gguf(ARCHITECTURES["gemma2"], write(tmp_path, reference)))


def test_what_a_file_leaves_open_of_gemma2(tmp_path):
    reference = make_alternating("gemma2", sliding_window=4096)
    silent = dict.fromkeys(["attention__sliding_window", "final_logit_softcapping", "attn_logit_softcapping"])
    file = open_gguf(write(tmp_path, reference, **silent))
    found = GemmaConfig.from_huggingface(Gemma2HuggingFaceConfig.from_dict(config_from_gguf(file)))
    assert found.layers == GemmaConfig.from_huggingface(reference.config).layers
    assert (found.attention_softcap, found.logit_softcap) == (50.0, 30.0)


def test_layers_without_a_window_are_scaled_by_themselves_in_gemma3(tmp_path):
    linear = {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}
    rope = {"full_attention": linear, "sliding_attention": LOCAL}
    reference = make_alternating("gemma3", rope_parameters=rope, final_logit_softcapping=3.0)
    path = write(tmp_path, reference, rope__scaling__type="linear", rope__scaling__factor=8.0)
    assert_equal_logits(reference, load_gguf(ARCHITECTURES["gemma3"], path))


def test_a_gemma3_without_windows(tmp_path):
    reference = make_alternating("gemma3", layer_types=["full_attention"] * 7)
    path = write(tmp_path, reference, attention__sliding_window=None)
    assert_equal_logits(reference, load_gguf(ARCHITECTURES["gemma3"], path))


def test_another_pattern(tmp_path):
    reference = make_alternating("gemma3", layer_types=(["sliding_attention", "full_attention"] * 4)[:7])
    path = write(tmp_path, reference, attention__sliding_window_pattern=2)
    assert_equal_logits(reference, load_gguf(ARCHITECTURES["gemma3"], path))


@pytest.mark.parametrize(("family", "num_layers"), [("gemma2", 46), ("gemma3", 62)])
def test_the_largest_are_scaled_by_their_hidden_size(family, num_layers, tmp_path):
    file = open_gguf(write(tmp_path, make_alternating(family)))
    assert config_from_gguf(file)["query_pre_attn_scalar"] == 32
    file.metadata[f"{family}.block_count"] = num_layers
    assert config_from_gguf(file)["query_pre_attn_scalar"] == 8


@pytest.mark.parametrize("family", WINDOWED)  # of which transformers reads files
@pytest.mark.parametrize("quantization", ["Q8_0", "Q4_0"])
def test_logits_equal_what_transformers_reads(family, quantization, tmp_path):
    settings = {"final_logit_softcapping": 30.0} if family == "gemma2" else {}
    reference = make_alternating(family, head_dim=256, query_pre_attn_scalar=256, num_key_value_heads=1, **settings)
    path = write(tmp_path, reference, gguf.GGMLQuantizationType[quantization])
    theirs = read_gguf_by_transformers(path)
    assert theirs.config.layer_types == reference.config.layer_types
    assert_equal_logits(theirs, load_gguf(ARCHITECTURES[family], path), prompts=PROMPTS[:3])  # what has place


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_it_answers(family, dtype, tmp_path):
    path = write(tmp_path, make_alternating(family), gguf.GGMLQuantizationType.Q8_0)
    with registry.load(path, dtype=dtype, device="cpu", kv_cache_memory="4MiB") as llm:
        (output,) = llm.generate(TextGenerationRequest(prompt="hello"), max_new_tokens=5, ignore_eos=True)
        assert len(output.tokens) == 5
        assert llm.tokenizer.eos_token_ids == {len(TOKENS) - 1}


def test_what_is_missing_is_named(tmp_path):
    file = open_gguf(write(tmp_path, make_alternating("gemma3")))
    del file.metadata["gemma3.attention.layer_norm_rms_epsilon"]
    with pytest.raises(CorruptCheckpointError, match=r"lacks 'gemma3\.attention\.layer_norm_rms_epsilon'"):
        config_from_gguf(file)


def test_what_no_config_can_say_is_refused(tmp_path):
    file = open_gguf(write(tmp_path, make_alternating("gemma3"), rope__freq_base_swa=500.0))
    with pytest.raises(UnsupportedModelError, match="freq_base_swa"):
        config_from_gguf(file)


def test_the_text_part_is_all_of_a_file(tmp_path):
    reference = make_alternating("gemma3")
    found = text_part(config_from_gguf(open_gguf(write(tmp_path, reference))))
    expected = GemmaConfig.from_huggingface(reference.config)
    assert GemmaConfig.from_huggingface(found).layers == expected.layers
    assert found.model_type == "gemma3_text"
