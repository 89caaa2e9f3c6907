"""A folder whose only vocabulary is SentencePiece's tokenizer.model, against the library that wrote it."""

import json

import pytest
import sentencepiece

from pipezoo_core.errors import UnsupportedTokenizerError
from pipezoo_core.tokenizer import load_tokenizer

TEXT = """A vocabulary of pieces is learned from text: the most frequent pairs of neighbours are joined, over and over.
Spaces become part of the pieces, and a text is preceded by one. Numbers such as 1, 22 and 333 are cut into digits.
def join(pieces): return "".join(pieces).replace("_", " ").strip()
"""
LIKE_MISTRAL = {
    "model_type": "bpe",
    "vocab_size": 400,
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "split_digits": True,
}


def write_vocabulary(folder, **changes):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()),
        model_prefix=str(folder / "tokenizer"),
        minloglevel=2,
        hard_vocab_limit=False,
        **{**LIKE_MISTRAL, **changes},
    )
    return sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))


TEXTS = [
    "A vocabulary of pieces",
    " and  two   spaces ",
    "",
    "\n\n\tdef join(x):\n    return 1234",
    "naïve 漢字 😀 ▁",
    "joined joined again",
]


@pytest.mark.parametrize("changes", [{}, {"add_dummy_prefix": False}, {"control_symbols": ["[INST]"]}])
def test_tokens_and_text_equal_the_librarys(tmp_path, changes):
    library = write_vocabulary(tmp_path, **changes)
    tokenizer = load_tokenizer(tmp_path)
    assert len(tokenizer) == library.get_piece_size()
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    for text in [*TEXTS, *TEXT.splitlines(), *(TEXT[i : i + 9] for i in range(0, len(TEXT), 5))]:
        tokens = tokenizer.encode(text)
        assert tokens == [1, *library.encode(text)]
        assert tokenizer.decode(tokens, skip_special_tokens=True) == library.decode(tokens)


def test_special_tokens_are_found_in_text(tmp_path):
    library = write_vocabulary(tmp_path, control_symbols=["[INST]"])
    tokens = load_tokenizer(tmp_path).encode("[INST]of</s>", add_special_tokens=False)
    assert (tokens[0], tokens[-1]) == (library.piece_to_id("[INST]"), 2)


def test_settings_beside_the_vocabulary_are_kept(tmp_path):
    write_vocabulary(tmp_path)
    settings = {"chat_template": "{{ messages[0].content }}", "pad_token": "</s>", "tokenizer_class": "LlamaTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.pad_token_id == 2
    assert tokenizer.bos_token_id == 1
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "unigram"}, "not of the kind BPE"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalizes text"),
        ({"remove_extra_whitespaces": True}, "normalizes text"),
    ],
)
def test_what_would_be_read_wrongly_is_refused(tmp_path, changes, reason):
    write_vocabulary(tmp_path, **changes)
    with pytest.raises(UnsupportedTokenizerError, match=reason):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("damage", [lambda data: data[:-5], lambda data: b"", lambda data: b"no protobuf" * 9])
def test_a_damaged_file_is_refused(tmp_path, damage):
    write_vocabulary(tmp_path)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UnsupportedTokenizerError, match="cannot be read"):
        load_tokenizer(tmp_path)
