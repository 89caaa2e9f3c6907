"""Gemma's tokenizer, of a folder and of a GGUF file, against transformers' `GemmaTokenizer`."""

import pytest
from tiny_models import TINY_LLAMA, randomize
from transformers import Gemma2Config, Gemma2ForCausalLM, GemmaTokenizer

from pipezoo import registry
from pipezoo_core.tokenizer import tokenizer_from_gguf

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
TURNS = ["<start_of_turn>", "<end_of_turn>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
MERGES = ["h e", "l l", "he ll", "hell o", "▁ w", "▁w o", "o r", "▁▁ ▁▁", "▁ ▁", "\n \n"]
CHARS = [*"▁helowrdTABx.123\n", "é"]
TOKENS = [*SPECIAL, *TURNS, *BYTES, *CHARS, *(merge.replace(" ", "") for merge in MERGES)]
TEXTS = [
    "hello world",
    " hello  world ",
    "    x\n\nhello\n",
    "é ñ 世",
    "T 123.",
    "<start_of_turn>user\nhello<end_of_turn>\n",
]
TURN = "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"


def make_tokenizer():
    tokenizer = GemmaTokenizer(
        vocab={token: i for i, token in enumerate(TOKENS)},
        merges=[tuple(merge.split(" ")) for merge in MERGES],
        add_bos_token=True,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": TURNS})
    tokenizer.chat_template = TURN
    return tokenizer


def metadata():
    kinds = [3] * len(SPECIAL + TURNS) + [6] * len(BYTES) + [1] * (len(CHARS) + len(MERGES))
    kinds[TOKENS.index("<unk>")] = 2
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.scores": [0.0] * (len(TOKENS) - len(MERGES)) + [-float(i) for i in range(len(MERGES))],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": TOKENS.index("<bos>"),
        "tokenizer.ggml.eos_token_id": TOKENS.index("<eos>"),
        "tokenizer.ggml.unknown_token_id": TOKENS.index("<unk>"),
        "tokenizer.ggml.padding_token_id": TOKENS.index("<pad>"),
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": TURN,
    }


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    folder, sizes = tmp_path_factory.mktemp("gemma"), {**TINY_LLAMA, "head_dim": 8, "vocab_size": len(TOKENS)}
    randomize(Gemma2ForCausalLM(Gemma2Config(**sizes))).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    with registry.load(folder, dtype="float32", device="cpu", kv_cache_memory="4MiB") as llm:
        yield llm


@pytest.mark.parametrize("text", TEXTS)
def test_texts_have_the_tokens_of_transformers(llm, text):
    expected = make_tokenizer().encode(text)
    assert llm.tokenizer.encode(text).tolist() == expected
    assert expected[0] == TOKENS.index("<bos>")


@pytest.mark.parametrize("text", TEXTS)
def test_a_gguf_file_has_the_same_tokens(text):
    found, expected = tokenizer_from_gguf(metadata()), make_tokenizer()
    assert found.encode(text) == expected.encode(text)
    assert found.decode(found.encode(text)) == expected.decode(expected.encode(text))


def test_chats_begin_once(llm):
    chat = [{"role": "user", "content": "hello"}]
    text = llm.tokenizer.apply_chat_template(chat)
    assert text == make_tokenizer().apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert tokenizer_from_gguf(metadata()).apply_chat_template(chat, tokenize=False) == text
    assert text.startswith("<bos><start_of_turn>user\nhello")
