"""Tokens of GPT-2, GPT-NeoX and GPT-J, of a folder and of a GGUF file, against transformers' tokenizers."""

import json

import pytest
from gguf_files import BYTES
from gpt import tiny_gpt, tiny_gpt_neox, tiny_gptj
from transformers import AutoTokenizer, GPT2Tokenizer, GPTNeoXTokenizer

from pipezoo import registry
from pipezoo_core.tokenizer import tokenizer_from_gguf

MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "' s", "Ġ Ġ", "1 2", "Ã ©", "ĠĠ ĠĠ", "Ġ Ã©", "Ċ Ċ"]
END = "<|endoftext|>"
VOCAB = {token: i for i, token in enumerate([END, *BYTES, *(merge.replace(" ", "") for merge in MERGES)])}
TEXTS = ["hello world", "it's 123.\n\n x", "    hello\r\n", "é café  ", f"hello{END}hello", "don't 中文 😀"]
SIZES = {"vocab_size": len(VOCAB) + 1, "bos_token_id": 0, "eos_token_id": 0}  # GPT-NeoX's has a token for padding, too
FAMILIES = {
    "gpt2": (tiny_gpt.make, GPT2Tokenizer),
    "gpt_neox": (tiny_gpt_neox.make, GPTNeoXTokenizer),
    "gptj": (tiny_gptj.make, GPT2Tokenizer),
}


def make_tokenizer(tokenizer_class):
    return tokenizer_class(vocab=VOCAB, merges=[tuple(merge.split()) for merge in MERGES])


@pytest.fixture(params=FAMILIES)
def folder(request, tmp_path):
    make, tokenizer_class = FAMILIES[request.param]
    make(**SIZES).save_pretrained(tmp_path)
    make_tokenizer(tokenizer_class).save_pretrained(tmp_path)
    return tmp_path


def assert_equal_tokens(folder):
    expected = AutoTokenizer.from_pretrained(folder)
    with registry.load(folder, dtype="float32", device="cpu", kv_cache_memory="1MiB") as llm:
        for text in TEXTS:
            tokens = llm.tokenizer.encode(text).tolist()
            assert tokens == expected.encode(text)
            assert llm.tokenizer.decode(tokens) == text.replace(END, "")
        assert llm.tokenizer.eos_token_ids == {0}
    assert len(expected.encode("hello")) == 1, "the merges are used"


def test_a_folder_with_tokenizer_json(folder):
    assert_equal_tokens(folder)


def test_a_folder_with_vocabulary_and_merges(folder):
    """As the first checkpoints."""
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(VOCAB))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    assert_equal_tokens(folder)


@pytest.mark.parametrize(("pre", "tokenizer_class"), [("gpt-2", GPT2Tokenizer), ("olmo", GPTNeoXTokenizer)])
def test_a_gguf_file_has_the_same_tokens(pre, tokenizer_class):
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*VOCAB],
        "tokenizer.ggml.token_type": [3, *[1] * (len(VOCAB) - 1)],
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
    }
    found, expected = tokenizer_from_gguf(metadata), make_tokenizer(tokenizer_class)
    for text in TEXTS:
        assert found.encode(text) == expected.encode(text)
    assert found.eos_token_id == expected.eos_token_id
