"""A folder whose only vocabulary is SentencePiece's tokenizer.model, against the library that wrote it."""

import json

import pytest
import sentencepiece
from tokenizers import AddedToken
from transformers import LlamaTokenizer
from transformers.convert_slow_tokenizer import generate_merges

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


BEHIND = ["<s>hello", "hello</s>human", "hello<tool>x y", "<tool>a<extra>\nb", "hello <extra>", "a joined text"]
FLAGS = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}


def transformers_tokenizer(library, legacy, added=()):
    pieces = {library.id_to_piece(i): i for i in range(library.get_piece_size())}
    merges = generate_merges(pieces, {piece: library.get_score(i) for piece, i in pieces.items()})
    reference = LlamaTokenizer(vocab=pieces, merges=merges, legacy=legacy)
    for text, is_special in added:
        reference.add_tokens([AddedToken(text, special=is_special, normalized=False)], special_tokens=is_special)
    return reference


def write_json(folder, name, value):
    (folder / name).write_text(json.dumps(value))


def check_equal(tokenizer, reference, texts):
    for text in texts:
        tokens = tokenizer.encode(text, add_special_tokens=False)
        assert tokens == reference.encode(text, add_special_tokens=False)
        assert tokenizer.decode(tokens, skip_special_tokens=True) == reference.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("legacy", [True, False, None])
def test_what_comes_before_a_text_behind_a_special_token(tmp_path, legacy):
    library = write_vocabulary(tmp_path)
    write_json(
        tmp_path, "tokenizer_config.json", {"unk_token": "<unk>"} | ({} if legacy is None else {"legacy": legacy})
    )
    texts = [*BEHIND, *([] if legacy in (True, None) else ["a</s> b", " and  two"])]
    check_equal(load_tokenizer(tmp_path), transformers_tokenizer(library, legacy is not False), texts)


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("is_special", [True, False])
@pytest.mark.parametrize("place", ["decoder", "file", "both"])
def test_added_tokens_beside_the_vocabulary(tmp_path, legacy, normalized, is_special, place):
    library = write_vocabulary(tmp_path)
    size = library.get_piece_size()
    settings = {"legacy": legacy}
    if place != "file":
        flags = {**FLAGS, "normalized": normalized}
        settings["added_tokens_decoder"] = {
            "1": {**FLAGS, "content": "<s>", "special": True},
            str(size): {**flags, "content": "<tool>", "special": is_special},
            str(size + 1): {**flags, "content": "<extra>", "special": False},
        }
    if place != "decoder":
        write_json(tmp_path, "added_tokens.json", {"<extra>": size + 1, "<tool>": size})
        if is_special:
            write_json(tmp_path, "special_tokens_map.json", {"additional_special_tokens": ["<tool>"]})
    write_json(tmp_path, "tokenizer_config.json", settings)
    reference = transformers_tokenizer(library, legacy, [("<tool>", is_special), ("<extra>", False)])
    check_equal(load_tokenizer(tmp_path), reference, BEHIND)


def test_added_tokens_keep_their_ids_where_some_are_left_out(tmp_path):
    size = write_vocabulary(tmp_path).get_piece_size()
    write_json(tmp_path, "added_tokens.json", {"<tool>": size + 5})
    assert load_tokenizer(tmp_path).encode("<tool>", add_special_tokens=False) == [size + 5]


@pytest.mark.parametrize("id_", [-1, 10**7])
def test_added_tokens_far_from_the_vocabulary_are_refused(tmp_path, id_):
    write_vocabulary(tmp_path)
    write_json(tmp_path, "added_tokens.json", {"<tool>": id_})
    with pytest.raises(UnsupportedTokenizerError, match="far from the vocabulary"):
        load_tokenizer(tmp_path)


def test_the_settings_say_whether_a_text_has_a_space_before_it(tmp_path):
    write_vocabulary(tmp_path)
    for legacy in (True, False):
        write_json(tmp_path, "tokenizer_config.json", {"legacy": legacy, "add_prefix_space": False})
        tokenizer = load_tokenizer(tmp_path)
        assert not tokenizer.convert_ids_to_tokens(tokenizer.encode("a", add_special_tokens=False))[0].startswith("▁")
