"""BLOOM against transformers on the same weights, its tokenizer, and which configs are refused."""

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
from gpt.tiny_bloom import BLOOM, make
from kernels_here import needs_kernels
from safetensors.torch import load_file, save_file
from tiny_models import load_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, BloomConfig, PreTrainedTokenizerFast

from pipezoo import registry
from pipezoo_core.errors import InvalidSettingError, UnsupportedModelError
from pipezoo_core.request import TextGenerationRequest

pytestmark = pytest.mark.matrix

WIDE = {"hidden_size": 64, "n_head": 2}  # heads of 32 numbers, for the kernels
CONFIGS = {
    "default": {},
    "eps": {"layer_norm_epsilon": 0.1},
    "untied": {"tie_word_embeddings": False},
    "adds_to_normalized": {"apply_residual_connection_post_layernorm": True},
    "exact_on_one_device": {"slow_but_exact": True},
    "trained_on_several": {"pretraining_tp": 4},
}
HEADS = {n: {"n_head": n, "hidden_size": 8 * n} for n in (1, 2, 3, 12)}
PAGE = 8 * 2 * 3 * 4 * 4 * 8  # 8 tokens: keys and values of 3 layers, 4 heads, 4 bytes per number, 8 numbers per head
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "' s", "1 2"]
TEXTS = ["hello world", "it's 12 345\n\n x", "  hello, world. ", "é café。", "hello</s>", ""]


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name, tmp_path):
    reference = make(**CONFIGS[name])
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path)))


@pytest.mark.parametrize("num_heads", HEADS)
def test_slopes_of_any_number_of_heads_are_those_of_transformers(num_heads, tmp_path):
    reference = make(**HEADS[num_heads])
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path)), chunks=(None,))


@needs_kernels
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_of_native_kernels(name, tmp_path):
    reference = make(**{**WIDE, **CONFIGS[name]})
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path), **NATIVE), chunks=(None,))


@pytest.mark.parametrize("name", ["eps", "adds_to_normalized"])
def test_switches_matter(name):
    assert_matters(make(), make(**CONFIGS[name]))


def test_published_names_have_no_prefix(tmp_path):
    reference = make()
    model = saved(reference, tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}, path)
    assert_equal_logits(reference, load_model(*model), chunks=(None,))


def test_greedy_tokens_equal_transformers(tiny_folder, tmp_path):
    reference = make()
    assert_equal_greedy_tokens(reference, save(reference, tmp_path, tiny_folder), few_pages=16 * PAGE)


@needs_kernels
@pytest.mark.parametrize("name", CONFIGS)
def test_steps_are_replayed(name, tiny_folder, tmp_path):
    reference = make(**{**WIDE, **CONFIGS[name]})
    assert why_not_replayed(save(reference, tmp_path, tiny_folder), dtype="float32") is None


def typed(raw):
    return BLOOM.pipeline_model.config_class.from_huggingface(BLOOM.huggingface_config(raw))


def test_defaults_are_those_of_transformers():
    assert typed({}) == BLOOM.pipeline_model.config_class.from_huggingface(BloomConfig())


def test_names_of_published_configs():
    config = typed({"n_embed": 96, "num_attention_heads": 12, "num_hidden_layers": 5, "seq_length": 77})
    assert (config.hidden_size, config.num_heads, config.num_layers) == (96, 12, 5)
    assert config.longest_request(None) == 77
    with pytest.raises(InvalidSettingError, match="max_length is above"):
        config.longest_request(78)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ({"n_head": 5}, "do not divide"),
        ({"n_head": 0}, "do not divide"),
        ({"slow_but_exact": True, "pretraining_tp": 2}, "slow_but_exact: true, pretraining_tp: 2"),
    ],
    ids=str,
)
def test_refused(raw, why):
    with pytest.raises(UnsupportedModelError, match=why):
        typed(raw)


def test_adapters_equal_merged_models(tmp_path):
    """Those of the fused layer are divided as it is."""
    reference = make()
    model = saved(reference, tmp_path / "model")
    assert_adapters_equal_merged(reference, model, tmp_path, target_modules=["query_key_value", "dense"])


def test_texts_have_the_tokens_of_transformers(tmp_path):
    words = [*SPECIAL, *BYTES, *(merge.replace(" ", "") for merge in MERGES)]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(merge.split()) for merge in MERGES]))
    runs = pre_tokenizers.Split(Regex(" ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [runs, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(tmp_path)
    make(vocab_size=len(words)).save_pretrained(tmp_path)
    expected = AutoTokenizer.from_pretrained(tmp_path)
    with registry.load(tmp_path, dtype="float32", device="cpu", kv_cache_memory="1MiB") as llm:
        for text in TEXTS:
            assert llm.tokenizer.encode(text).tolist() == expected.encode(text)
        assert llm.tokenizer.eos_token_ids == {words.index("</s>")}


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, HEADS[3]], ids=["default", "untied", "three"])
def test_ranks_equal_transformers(changes, tmp_path):
    reference = make(**changes)
    assert_equal_on_ranks(reference, saved(reference, tmp_path / "model"), tmp_path)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_answers_in_lower_precision(dtype, tiny_folder, tmp_path):
    folder = save(make(**WIDE), tmp_path, tiny_folder)
    with registry.load(folder, dtype=dtype, device="cpu", kv_cache_memory="1MiB") as llm:
        output = llm.generate([TextGenerationRequest(prompt=[5, 6, 7])], max_new_tokens=8, ignore_eos=True)[0]
    assert len(output.tokens) == 8
