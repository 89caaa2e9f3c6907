"""No text has more characters than its tokens can stand for, whatever the tokenizer."""

import random

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipezoo_core.tokenizer.token_length import TokenLength

PIECES = [
    " ",
    "  ",
    "\n",
    "a",
    "the",
    "é",
    "e\u0301",
    "中",
    "😀",
    "ǖ",
    "u\u0308\u0304",
    "<bos>",
    "<think>",
    "\x00",
    "12",
]


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece", "smollm2"])
def test_no_text_has_more_characters_than_its_tokens_can_have(kind, request):
    tokenizer = request.getfixturevalue(kind)
    length = TokenLength.of(tokenizer)
    assert length is not None
    assert length.max_characters >= max(len(tokenizer.decode([token])) for token in tokenizer.get_vocab().values())
    rng = random.Random(0)
    texts = [piece * 500 for piece in PIECES]
    texts += ["".join(rng.choices(PIECES, k=rng.randrange(1, 300))) for _ in range(200)]
    for text in texts:
        assert length.fewest_tokens(text) <= len(tokenizer.encode(text, add_special_tokens=False))
    assert length.fewest_tokens("the " * 10**6) > 10**6 * 4 / 200


def of(model, normalizer=None, pre_tokenizer=None, added=()):
    tokenizer = Tokenizer(model)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.add_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


ALL = {piece: number for number, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)


@pytest.mark.parametrize(
    "settings",
    [
        {"model": models.BPE({"a": 0}, [])},
        {"model": models.BPE({"a": 0, "<unk>": 1}, [], unk_token="<unk>", fuse_unk=True)},
        {"model": models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>")},
        {"model": models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0)},
        {"model": models.BPE({"a": 0}, []), "pre_tokenizer": BYTES},
        {"model": models.BPE(ALL, []), "pre_tokenizer": BYTES, "normalizer": normalizers.Strip()},
        {"model": models.BPE(ALL, []), "pre_tokenizer": BYTES, "normalizer": normalizers.Replace("aaaa", "a")},
        {
            "model": models.BPE(ALL, []),
            "pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "removed"), BYTES]),
        },
        {"model": models.BPE(ALL, []), "pre_tokenizer": BYTES, "added": [AddedToken("<x>", lstrip=True)]},
        {"model": models.BPE(ALL, []), "pre_tokenizer": BYTES, "added": [AddedToken("<x>", rstrip=True)]},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_where_text_may_vanish_nothing_is_certain(settings):
    assert TokenLength.of(of(**settings)) is None


def test_a_vocabulary_that_lacks_bytes_drops_text(smollm2):
    """It has no token for some control characters, nor for the first byte of some rare ones."""
    length = TokenLength.of(smollm2)
    assert length is not None
    for text in ("\U00040000" * 1000, length.vanishing * 1000, f"{length.vanishing}a" * 1000):
        num_tokens = len(smollm2.encode(text, add_special_tokens=False))
        assert length.fewest_tokens(text) <= num_tokens < len(text.encode())


def test_characters_that_are_composed_count_as_several():
    bytes_only = {"model": models.BPE(ALL, []), "pre_tokenizer": BYTES}
    assert TokenLength.of(of(**bytes_only)) == TokenLength(1)
    assert TokenLength.of(of(**bytes_only, normalizer=normalizers.NFC())) == TokenLength(4)


def test_characters_without_a_token_do_not_count():
    """Bytes 4 and 255, and the first one of characters beyond those that have names."""
    lacking = {piece: number for piece, number in ALL.items() if piece not in "\u0104\u00ff\u00f2"}
    tokenizer = of(models.BPE(lacking, []), pre_tokenizer=BYTES)
    length = TokenLength.of(tokenizer)
    assert length == TokenLength(1, "\x04")
    for text in ("a\x04" * 50, "\x04" * 9, "\U00080000" * 7, "\x05é"):
        assert length.fewest_tokens(text) <= len(tokenizer.encode(text))
    assert length.fewest_tokens("a\x04" * 50) == 50
