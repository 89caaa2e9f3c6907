"""Tokenizers out of GGUF metadata, against transformers' conversion and against the algorithms written plainly."""

import re
from itertools import pairwise

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from pipezoo_core.errors import UnsupportedTokenizerError
from pipezoo_core.tokenizer import gguf_end_tokens, tokenizer_from_gguf
from pipezoo_core.tokenizer.gguf_pre_tokenizers import KNOWN_PRE_TOKENIZERS

TEXTS = [
    "Hello, world!",
    "  leading and trailing  ",
    "line\n\nbreaks\r\n\tand tabs \n",
    "def f(x):\n    return x**2  # squared\n",
    "It's 2024, we've paid $1,234.56 (approx.)",
    "Größe naïve façade — “quotes”…",
    "日本語と中文 한국어 العربية हिन्दी",
    "👩‍👩‍👧 🇩🇪 e\u0301 \u200b\u00a0",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "a<|endoftext|>b <repo_name>c",
    "<|im_start| > not special",
    "HTTPServerError camelCase SCREAMING_CASE ŁÓDŹ",
    "x" * 300,
    " " * 40 + "y",
    "\ufffd\x00\x7f",
]
NUMBER_AFTER_SPACES = "a  2  33"


def plain_byte_level(metadata, spelling, splits, text):
    """Byte-level BPE as Sennrich et al. (2016) have it: of all pairs, join the one that was learned first."""
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(metadata["tokenizer.ggml.merges"])}
    ids = {token: token_id for token_id, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    words = [text]
    for split in splits:
        words = [part for word in words for part in regex.split(f"({split})", word) if part]
    tokens = []
    for word in words:
        symbols = [spelling[byte] for byte in word.encode()]
        while len(symbols) > 1:
            pairs = list(pairwise(symbols))
            at = min(range(len(pairs)), key=lambda i: ranks.get(pairs[i], len(ranks)))
            if pairs[at] not in ranks:
                break
            symbols[at : at + 2] = ["".join(pairs[at])]
        tokens += [ids[symbol] for symbol in symbols]
    return tokens


def plain_sentencepiece(metadata, text):
    """SentencePiece's BPE: of all neighbours that make a piece, join those with the best score, the leftmost first."""
    pieces = dict(zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"], strict=True))
    ids = {piece: token_id for token_id, piece in enumerate(pieces)}
    symbols = list(("▁" + text).replace(" ", "▁")) if text else []
    while True:
        found = [(-pieces[a + b], i) for i, (a, b) in enumerate(pairwise(symbols)) if a + b in pieces]
        if not found:
            break
        at = min(found)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    return [i for s in symbols for i in ([ids[s]] if s in ids else [3 + byte for byte in s.encode()])]


@pytest.fixture(scope="module")
def converted_by_transformers(smollm2_path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2_path.parent, gguf_file=smollm2_path.name)


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS)
def test_smollm2_has_the_tokens_of_transformers_conversion(smollm2, converted_by_transformers, text):
    assert smollm2.encode(text) == converted_by_transformers.encode(text)


@pytest.mark.slow
def test_smollm2_has_the_chat_of_transformers_conversion(smollm2, converted_by_transformers):
    messages = [{"role": "user", "content": "Wie spät ist es?"}, {"role": "assistant", "content": "12 Uhr"}]
    expected = converted_by_transformers.apply_chat_template(messages, tokenize=False)
    assert smollm2.apply_chat_template(messages, tokenize=False) == expected


@pytest.mark.slow
def test_smollm2_cuts_digits_off_as_it_was_trained(smollm2, smollm2_metadata, byte_spelling, converted_by_transformers):
    # transformers' conversion leaves out that digits are words of their own (seen in 5.23).
    ours = smollm2.encode(NUMBER_AFTER_SPACES)
    assert ours == plain_byte_level(
        smollm2_metadata, byte_spelling, KNOWN_PRE_TOKENIZERS["smollm"].splits, NUMBER_AFTER_SPACES
    )
    assert ours != converted_by_transformers.encode(NUMBER_AFTER_SPACES)


@pytest.mark.parametrize("text", [*TEXTS, NUMBER_AFTER_SPACES])
def test_smollm2_text_comes_back(smollm2, text):
    assert smollm2.decode(smollm2.encode(text), clean_up_tokenization_spaces=False) == text


def names_no_special_token(text):
    return re.search("<.*>", text, re.DOTALL) is None


@pytest.mark.matrix
@given(text=(st.text() | st.text("helo w'sS12aé😀\n\r\t.,$/A")).filter(names_no_special_token))
@pytest.mark.parametrize("pre", sorted(KNOWN_PRE_TOKENIZERS))
def test_byte_level_tokens_are_those_of_plain_bpe(byte_level_of, byte_level_metadata, byte_spelling, pre, text):
    expected = plain_byte_level(byte_level_metadata, byte_spelling, KNOWN_PRE_TOKENIZERS[pre].splits, text)
    assert byte_level_of[pre].encode(text, add_special_tokens=False) == expected


@pytest.fixture(scope="module")
def byte_level_of(byte_level_metadata):
    return {
        pre: tokenizer_from_gguf({**byte_level_metadata, "tokenizer.ggml.pre": pre}) for pre in KNOWN_PRE_TOKENIZERS
    }


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("gpt-2", "It's 2024  ok", ["It", "'s", " 2024", " ", " ok"]),
        ("smollm", "It's 2024  ok", ["It", "'s", " ", "2", "0", "2", "4", " ", " ok"]),
        ("llama-bpe", "IT'S 12345\n\n x", ["IT", "'S", " ", "123", "45", "\n\n", " x"]),
        ("qwen2", "IT'S 123.\n x", ["IT", "'S", " ", "1", "2", "3", ".\n", " x"]),
        ("qwen2", "e\u0301a 12", ["e", "\u0301a", " ", "1", "2"]),
        ("qwen35", "e\u0301a 12", ["e\u0301a", " ", "1", "2"]),
        ("tekken", "HelloWorld 12/\nÉa", ["Hello", "World", " ", "1", "2", "/\n", "Éa"]),
        ("gpt-4o", "don't HelloWorld 1234", ["don't", " Hello", "World", " ", "123", "4"]),
        ("default", "a(b) $12345", ["a", "(", "b", ")", " ", "$", "123", "45"]),
        (
            "deepseek-coder",
            "It's 2024,\n ok\u4e2d",
            ["It", "'", "s", " ", "2", "0", "2", "4", ",", "\n", " ok", "\u4e2d"],
        ),
        ("deepseek-llm", "It's \u00e912\n b  ", ["It", "'", "s", " \u00e9", "1", "2", "\n", " b", "  "]),
        ("deepseek-llm", "\u4e2d\u6587ok\uff0c\uac00", ["\u4e2d\u6587", "ok", "\uff0c", "\uac00"]),
        (
            "deepseek-v3",
            "It's 12345.\n x \u4e2d\u3042.ab",
            ["It", "'s", " ", "123", "45", ".\n", " x", " ", "\u4e2d\u3042", ".ab"],
        ),
        ("bloom", "It's 2024.  ok,\n\nx", ["It's", " 2024", ". ", " ok", ",\n\n", "x"]),
        ("falcon", "a`b 12345", ["a", "`", "b", " ", "123", "45"]),
    ],
)
def test_words(byte_level_of, pre, text, words):
    found = byte_level_of[pre].backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert [text[begin:end] for _, (begin, end) in found] == words


def test_a_word_that_is_a_token_ignores_merges_where_the_model_does(byte_level_metadata):
    metadata = {**byte_level_metadata, "tokenizer.ggml.merges": byte_level_metadata["tokenizer.ggml.merges"][:1]}
    hello = metadata["tokenizer.ggml.tokens"].index("hello")
    by_merges, at_once = (
        tokenizer_from_gguf({**metadata, "tokenizer.ggml.pre": pre}).encode("hello", add_special_tokens=False)
        for pre in ("gpt-2", "llama-bpe")
    )
    assert at_once == [hello]
    assert hello not in by_merges


@given(text=st.text("▁theainbrgsxyzé,中q😀 ", max_size=40))
def test_sentencepiece_tokens_are_those_of_plain_merging(sentencepiece, sentencepiece_metadata, text):
    found = sentencepiece.encode(text, add_special_tokens=False)
    assert found == plain_sentencepiece(sentencepiece_metadata, text)


@given(text=st.text("theainbrgsxyzé,中q😀 \n", max_size=40))
def test_sentencepiece_text_comes_back(sentencepiece, text):
    assert sentencepiece.decode(sentencepiece.encode(text), skip_special_tokens=True) == text


@given(text=st.text("ab", max_size=30), order=st.permutations(["aa", "ab", "ba", "aab", "aba", "abab", "aaaa", "baa"]))
def test_sentencepiece_merges_of_any_order_in_which_parts_come_first(sentencepiece_metadata, text, order):
    order = sorted(order, key=len)
    pieces = [*order, "a", "b", "▁"]
    types = [2, 3, 3, *[6] * 256, *[1] * len(pieces)]
    metadata = {
        **sentencepiece_metadata,
        "tokenizer.ggml.tokens": [*sentencepiece_metadata["tokenizer.ggml.tokens"][:259], *pieces],
        "tokenizer.ggml.scores": [*[0.0] * 259, *(-float(i) for i in range(len(pieces)))],
        "tokenizer.ggml.token_type": types,
    }
    found = tokenizer_from_gguf(metadata).encode(text, add_special_tokens=False)
    assert found == plain_sentencepiece(metadata, text)


def test_sentencepiece_prefix_space(sentencepiece, sentencepiece_metadata):
    pieces = sentencepiece.convert_ids_to_tokens(sentencepiece.encode("the</s>the<think>a"))
    assert pieces == ["<s>", "▁the", "</s>", "▁the", "<think>", "▁a"]
    bare = tokenizer_from_gguf({**sentencepiece_metadata, "tokenizer.ggml.add_space_prefix": False})
    tokens = bare.encode("the a", add_special_tokens=False)
    assert bare.convert_ids_to_tokens(tokens) == ["t", "he", "▁a"]
    assert bare.decode(bare.encode(" a"), skip_special_tokens=True) == " a"


def test_a_user_defined_piece_of_spaces_is_merged_like_any(sentencepiece, sentencepiece_metadata):
    types = list(sentencepiece_metadata["tokenizer.ggml.token_type"])
    types[sentencepiece_metadata["tokenizer.ggml.tokens"].index("▁▁")] = 4
    metadata = {**sentencepiece_metadata, "tokenizer.ggml.token_type": types}
    assert tokenizer_from_gguf(metadata).encode("a  a    a") == sentencepiece.encode("a  a    a")


def test_special_tokens_are_found_in_text(byte_level, byte_level_metadata):
    tokens = byte_level_metadata["tokenizer.ggml.tokens"]
    found = byte_level.encode("hello<eot><think>1")
    assert [tokens[i] for i in found] == ["hello", "<eot>", "<think>", "1"]
    assert byte_level.decode(found, skip_special_tokens=True) == "hello<think>1"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["a"]),
        ({"add_bos_token": True}, ["<bos>", "a"]),
        ({"add_bos_token": True, "add_eos_token": True}, ["<bos>", "a", "<eos>"]),
        ({"pre": "llama-bpe"}, ["<bos>", "a"]),
        ({"pre": "llama-bpe", "add_bos_token": False}, ["a"]),
    ],
)
def test_tokens_around_a_text(byte_level_metadata, changes, expected):
    metadata = byte_level_metadata | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    tokenizer = tokenizer_from_gguf(metadata)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("a")) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "bert"}, "found: bert; allowed: gpt2, llama"),
        ({"pre": "made-up"}, r"found: made-up; allowed: .*llama-bpe.*smollm"),
        ({"pre": None}, r"lacks tokenizer\.ggml\.pre"),
        ({"tokens": None}, r"lacks tokenizer\.ggml\.tokens"),
        ({"tokens": ["a", "a"]}, "2 tokens, 1 different"),
        ({"token_type": [1]}, "1 types"),
        ({"merges": ["no way"]}, "merges do not fit"),
        ({"add_bos_token": True, "bos_token_id": None}, "wants a bos_token added"),
        ({"bos_token_id": "1"}, r"bos_token_id is no number of a token .found: '1'"),
        ({"eot_token_id": [1]}, "eot_token_id is no number"),
        ({"model": ["gpt2"]}, "cannot be read"),
        ({"pre": ["smollm"]}, "cannot be read"),
        ({"tokens": 5}, "cannot be read"),
        ({"tokens": [["a"]]}, "cannot be read"),
        ({"token_type": 3}, "cannot be read"),
        ({"merges": [1]}, "cannot be read"),
    ],
)
def test_what_is_refused(byte_level_metadata, changes, message):
    metadata = byte_level_metadata | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    with pytest.raises(UnsupportedTokenizerError, match=message):
        tokenizer_from_gguf({key: value for key, value in metadata.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": [0.0, -1.0]}, r"tokens without a score .found: \d+ tokens, 2 scores"),
        ({"scores": 0.0}, "cannot be read"),
        ({"scores": ["best"] * 1000}, "cannot be read"),
        ({"unknown_token_id": 0.0}, "unknown_token_id is no number"),
    ],
)
def test_what_is_refused_of_sentencepiece(sentencepiece_metadata, changes, message):
    metadata = sentencepiece_metadata | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    with pytest.raises(UnsupportedTokenizerError, match=message):
        tokenizer_from_gguf(metadata)


def test_what_went_wrong_is_chained(byte_level_metadata):
    with pytest.raises(UnsupportedTokenizerError, match="found: TypeError: ") as caught:
        tokenizer_from_gguf({**byte_level_metadata, "tokenizer.ggml.tokens": 5})
    assert isinstance(caught.value.__cause__, TypeError)


def test_a_chat_template_that_is_no_text_is_refused(byte_level_metadata):
    with pytest.raises(UnsupportedTokenizerError, match="chat_template is no text"):
        tokenizer_from_gguf({**byte_level_metadata, "tokenizer.chat_template": 5})


def with_tokens(metadata, *texts, type_=1, **values):
    """The metadata with more tokens, and the ids of these."""
    first = len(metadata["tokenizer.ggml.tokens"])
    more = {
        "tokens": [*metadata["tokenizer.ggml.tokens"], *texts],
        "token_type": [*metadata["tokenizer.ggml.token_type"], *[type_] * len(texts)],
        **values,
    }
    changed = metadata | {f"tokenizer.ggml.{key}": value for key, value in more.items()}
    return changed, {text: first + i for i, text in enumerate(texts)}


ENDS = [
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>", "</s>",
    "<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>",
    "<eos>", "<turn|>", "<|tool_response>", "<|fim_pad|>", "<PAD>", "<|repo_name|>", "<reponame>", "<|file_sep|>",
    "<｜end▁of▁sentence｜>",
]  # fmt: skip


@pytest.mark.parametrize("type_", [1, 3, 4])
@pytest.mark.parametrize("end", [end for end in ENDS if end != "<eos>"])
def test_an_end_is_found_by_its_text_and_has_no_text(byte_level_metadata, end, type_):
    metadata, ids = with_tokens(byte_level_metadata, end, type_=type_, eot_token_id=None, eos_token_id=5)
    metadata = {key: value for key, value in metadata.items() if value is not None}
    found = tokenizer_from_gguf(metadata).encode(f"a{end}b", add_special_tokens=False)
    assert found == [ord("a"), ids[end], ord("b")]
    assert tokenizer_from_gguf(metadata).decode(found, skip_special_tokens=True) == "ab"
    assert {5, ids[end]} <= gguf_end_tokens(metadata)


@pytest.mark.parametrize("text", ["<|fim_prefix|>", "<SUF>", "<fim_middle>", "▁<PRE>", "<｜fim▁hole｜>"])
def test_a_control_token_of_normal_type_is_one_and_no_end(byte_level_metadata, text):
    metadata, ids = with_tokens(byte_level_metadata, text)
    assert tokenizer_from_gguf(metadata).encode(f"a{text}", add_special_tokens=False) == [ord("a"), ids[text]]
    assert ids[text] not in gguf_end_tokens(metadata)


def test_where_the_file_names_a_token_its_texts_are_not_searched(byte_level_metadata):
    metadata, ids = with_tokens(byte_level_metadata, "<|fim_pad|>", "<|im_end|>", fim_pad_token_id=7)
    ends = gguf_end_tokens(metadata)
    assert {7, ids["<|im_end|>"], 271, 272} <= ends
    assert ids["<|fim_pad|>"] not in ends
    assert len(tokenizer_from_gguf(metadata).encode("<|fim_pad|>", add_special_tokens=False)) > 1


@pytest.mark.parametrize(
    ("texts", "no_end", "shown"),
    [
        (("<|end|>", "<|return|>", "<|call|>"), "<|end|>", "<|end|>"),
        (("<|end|>", "<|flush|>", "<|calls|>"), "<|end|>", "<|end|>"),
        (("<|end|>", "<|return|>"), None, ""),
        (("</s>", "<|tool_response>"), "</s>", "</s>"),
    ],
)
def test_what_looks_like_an_end_and_is_none(byte_level_metadata, texts, no_end, shown):
    metadata, ids = with_tokens(byte_level_metadata, *texts)
    assert gguf_end_tokens(metadata) & set(ids.values()) == {ids[text] for text in texts if text != no_end}
    assert tokenizer_from_gguf(metadata).decode([ids[texts[0]]], skip_special_tokens=True) == shown


def test_parts_of_an_answer_are_shown(byte_level_metadata):
    metadata, ids = with_tokens(byte_level_metadata, "<|channel|>", type_=3)
    assert tokenizer_from_gguf(metadata).decode([*ids.values()], skip_special_tokens=True) == "<|channel|>"


@pytest.mark.parametrize("wrong", [None, 10**6])
def test_sentencepiece_ids_that_the_file_does_not_name(sentencepiece_metadata, sentencepiece, wrong):
    keys = ("bos_token_id", "eos_token_id", "unknown_token_id")
    metadata = sentencepiece_metadata | {f"tokenizer.ggml.{key}": wrong for key in keys}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    tokenizer = tokenizer_from_gguf(metadata)
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.encode("the a") == sentencepiece.encode("the a")
    assert gguf_end_tokens(metadata) == {2}


def test_a_vocabulary_of_long_pieces_costs_little_or_is_refused(sentencepiece_metadata):
    def of(*pieces):
        return with_tokens(
            sentencepiece_metadata,
            *pieces,
            scores=[*sentencepiece_metadata["tokenizer.ggml.scores"], *[-99.0] * len(pieces)],
        )[0]

    long = tokenizer_from_gguf(of("q" * 10**6))
    assert long.encode("the", add_special_tokens=False) == tokenizer_from_gguf(of()).encode(
        "the", add_special_tokens=False
    )
    with pytest.raises(UnsupportedTokenizerError, match="too many long pieces"):
        tokenizer_from_gguf(of(*("q" * size for size in range(2, 1500))))
