"""GPT-2's tokenizer, of a folder and of a GGUF file, against transformers'."""

import pytest
from byte_level import PAIRS, TEXTS, VOCABULARY, gguf_metadata
from gpt.tiny_gpt import make
from transformers import AutoTokenizer, GPT2Tokenizer

from pipezoo import registry
from pipezoo_core.errors import InvalidRequestError
from pipezoo_core.tokenizer import tokenizer_from_gguf

END = "<|endoftext|>"
OWN_TEXTS = [*TEXTS, f"hello{END}world", f" {END} hello"]


@pytest.fixture(scope="module", params=["tokenizer.json", "vocab.json"])
def folder(request, tmp_path_factory):
    """With the one file, or with vocab.json and merges.txt as in the first checkpoints."""
    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = GPT2Tokenizer(vocab={**VOCABULARY, END: len(VOCABULARY)}, merges=PAIRS)
    tokenizer.save_pretrained(folder)
    if request.param == "vocab.json":
        tokenizer.backend_tokenizer.model.save(str(folder))
        (folder / "tokenizer.json").unlink()
    make(vocab_size=len(tokenizer)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llm(folder):
    with registry.load(folder, dtype="float32", device="cpu", kv_cache_memory="4MiB") as llm:
        yield llm


def test_texts_have_the_tokens_of_transformers(folder, llm):
    expected = AutoTokenizer.from_pretrained(folder)
    for text in OWN_TEXTS:
        assert llm.tokenizer.encode(text).tolist() == expected.encode(text)
    assert expected.encode("hello") == [VOCABULARY["hello"]]


def test_a_gguf_file_has_the_same_tokens(folder):
    expected = AutoTokenizer.from_pretrained(folder)
    found = tokenizer_from_gguf({key: value for key, value in gguf_metadata(expected, "gpt-2").items() if value})
    for text in OWN_TEXTS:
        assert found.encode(text) == expected.encode(text)
        assert found.decode(found.encode(text)) == text
    assert found.eos_token_id == expected.eos_token_id


def test_there_are_no_chats(llm):
    with pytest.raises(InvalidRequestError, match="no chat template"):
        llm.chat([{"role": "user", "content": "hello"}], max_new_tokens=1)
