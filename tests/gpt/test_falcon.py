"""Falcon against transformers on the same weights, its tokenizer, and which configs are refused."""

import pytest
from families import (
    NATIVE,
    assert_adapters_equal_merged,
    assert_equal_greedy_tokens,
    assert_equal_logits,
    assert_equal_on_ranks,
    assert_matters,
    save,
    why_not_replayed,
)
from gguf_files import BYTES
from gpt.architectures import saved
from gpt.tiny_falcon import FALCON, NEW, make
from kernels_here import needs_kernels
from tiny_models import load_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, FalconConfig, PreTrainedTokenizerFast

from pipezoo import registry
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.request import TextGenerationRequest

pytestmark = pytest.mark.matrix

WIDE = {"hidden_size": 128}  # heads of 32 numbers, for the kernels
MULTI_HEAD = {"multi_query": False}
CONFIGS = {
    "7b": {},
    "40b": NEW,
    "11b": {**NEW, "num_ln_in_parallel_attn": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "all_heads": MULTI_HEAD,
    "one_after_the_other": {"parallel_attn": False},
    "all_heads_one_after_the_other": {**MULTI_HEAD, "parallel_attn": False, "bias": True},
    "new_of_all_heads": {"new_decoder_architecture": True},
    "new_unread": {**NEW, "multi_query": False, "num_ln_in_parallel_attn": 2},
    "one_norm_said": {"num_ln_in_parallel_attn": 1},
    "bias": {**NEW, "bias": True},
    "ffn": {"ffn_hidden_size": 48},
    "activation": {"activation": "relu"},
    "eps": {"layer_norm_epsilon": 0.1},
    "untied": {"tie_word_embeddings": False},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    "dynamic": {
        "max_position_embeddings": 32,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 8.0},
    },
    "nulls": dict.fromkeys(("alibi", "new_decoder_architecture", "bias", "num_kv_heads", "ffn_hidden_size")),
}
WHOLE = {"dynamic"}  # transformers rotates by the longest request so far, so chunks differ
PAGE = 8 * 2 * 3 * 2 * 4 * 8  # 8 tokens: keys and values of 3 layers, 2 heads, 4 bytes per number, 8 numbers per head
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "' s", "1 2"]
TEXTS = ["hello world", "it's 12 345 6789\n\n x", "  hello, world. ", "é café", "hello<|endoftext|>"]


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name, tmp_path):
    reference = make(**CONFIGS[name])
    chunks = (None,) if name in WHOLE else (None, 7)
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path)), chunks=chunks)


@needs_kernels
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_of_native_kernels(name, tmp_path):
    reference = make(**{**WIDE, **CONFIGS[name]})
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path), **NATIVE), chunks=(None,))


@pytest.mark.parametrize(
    ("one", "other"),
    [("7b", "activation"), ("7b", "eps"), ("7b", "one_after_the_other"), ("7b", "linear"), ("11b", "40b")],
)
def test_switches_matter(one, other):
    assert_matters(make(**CONFIGS[one]), make(**CONFIGS[other]))


@pytest.mark.parametrize("name", ["7b", "40b"])
def test_greedy_tokens_equal_transformers(name, tiny_folder, tmp_path):
    reference = make(**CONFIGS[name])
    page = PAGE if name == "40b" else PAGE // 2
    assert_equal_greedy_tokens(reference, save(reference, tmp_path, tiny_folder), few_pages=16 * page)


@needs_kernels
@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in WHOLE])
def test_steps_are_replayed(name, tiny_folder, tmp_path):
    reference = make(**{**WIDE, **CONFIGS[name]})
    assert why_not_replayed(save(reference, tmp_path, tiny_folder), dtype="float32") is None


def typed(raw):
    return FALCON.pipeline_model.config_class.from_huggingface(FALCON.huggingface_config(raw))


@pytest.mark.parametrize("raw", [{}, {"n_embed": 96, "num_attention_heads": 4}], ids=["defaults", "old_name"])
def test_fields_are_read_as_transformers_reads_them(raw):
    assert typed(raw) == FALCON.pipeline_model.config_class.from_huggingface(FalconConfig.from_dict(raw))


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ({"alibi": True}, "the config has ALiBi"),
        ({"activation": "no_such_function"}, "activation function is unknown"),
        ({"num_attention_heads": 5}, "do not divide"),
        ({"num_attention_heads": 0}, "do not divide"),
        ({"new_decoder_architecture": True, "parallel_attn": False}, "found: parallel_attn: false"),
        ({"new_decoder_architecture": True, "num_ln_in_parallel_attn": 3}, "num_ln_in_parallel_attn is unknown"),
        ({"new_decoder_architecture": True, "num_kv_heads": 3}, "cannot be shared evenly"),
        ({"num_ln_in_parallel_attn": 2}, "found: num_ln_in_parallel_attn: 2"),
        ({"multi_query": False, "num_kv_heads": 2}, "found: num_kv_heads: 2"),
        ({"rope_parameters": {"rope_type": "no_such_type", "rope_theta": 1e4}}, "unknown kind of RoPE"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "rotates heads whole"),
    ],
    ids=str,
)
def test_refused(raw, why):
    with pytest.raises(UnsupportedModelError, match=why):
        typed(raw)


@pytest.mark.parametrize("name", ["40b", "7b"])
def test_adapters_equal_merged_models(name, tmp_path):
    """Those of the fused layer are divided as it is."""
    reference = make(**CONFIGS[name])
    model = saved(reference, tmp_path / "model")
    assert_adapters_equal_merged(reference, model, tmp_path, target_modules=["query_key_value", "dense_h_to_4h"])


def test_texts_have_the_tokens_of_transformers(tmp_path):
    words = ["<|endoftext|>", *BYTES, *(merge.replace(" ", "") for merge in MERGES)]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(merge.split()) for merge in MERGES]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Punctuation("contiguous"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=words[0]).save_pretrained(tmp_path)
    make(vocab_size=len(words), bos_token_id=0, eos_token_id=0).save_pretrained(tmp_path)
    expected = AutoTokenizer.from_pretrained(tmp_path)
    with registry.load(tmp_path, dtype="float32", device="cpu", kv_cache_memory="1MiB") as llm:
        for text in TEXTS:
            assert llm.tokenizer.encode(text).tolist() == expected.encode(text)
        assert llm.tokenizer.eos_token_ids == {0}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["7b", "40b", "all_heads_one_after_the_other"])
def test_ranks_equal_transformers(name, tmp_path):
    reference = make(**CONFIGS[name])
    assert_equal_on_ranks(reference, saved(reference, tmp_path / "model"), tmp_path)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_answers_in_lower_precision(dtype, tiny_folder, tmp_path):
    folder = save(make(**{**WIDE, **NEW}), tmp_path, tiny_folder)
    with registry.load(folder, dtype=dtype, device="cpu", kv_cache_memory="1MiB") as llm:
        output = llm.generate([TextGenerationRequest(prompt=[5, 6, 7])], max_new_tokens=8, ignore_eos=True)[0]
    assert len(output.tokens) == 8
