"""A tokenizer.json of Mistral's that was written with Llama 3's expression cuts words as Mistral's own."""

import json

import pytest
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from pipezoo_core.tokenizer import load_tokenizer
from pipezoo_core.tokenizer.gguf_pre_tokenizers import KNOWN_PRE_TOKENIZERS

LLAMAS, MISTRALS = (KNOWN_PRE_TOKENIZERS[name].splits[0] for name in ("llama3", "tekken"))
TEXT = "12345 camelCase HTMLParser don't 漢字 /path\n"


def write_folder(folder, expression, *, num_tokens=100_001, model_type="mistral", version="4.57.1", more=()):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("1", "2"), ("12", "3"), ("4", "5"), ("l", "C"), ("L", "P")]
    tokens = [*letters, *("".join(merge) for merge in merges), *more]
    tokens += [f"<{number}>" for number in range(len(tokens), num_tokens)]
    tokenizer = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(expression), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "transformers_version": version}))
    return tokenizer


@pytest.fixture
def mistrals_tokens(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("right"), MISTRALS).encode(TEXT).ids


def tokens_of(folder):
    return load_tokenizer(folder).encode(TEXT, add_special_tokens=False)


def test_llamas_expression_in_a_file_of_mistrals_is_mended(tmp_path, mistrals_tokens):
    as_written = write_folder(tmp_path, LLAMAS).encode(TEXT).ids
    assert tokens_of(tmp_path) == mistrals_tokens != as_written


def test_what_is_right_stays(tmp_path, mistrals_tokens):
    write_folder(tmp_path, MISTRALS)
    assert tokens_of(tmp_path) == mistrals_tokens


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "llama"},
        {"num_tokens": 32_000},
        {"version": "5.0.0"},
        {"more": ("<|begin_of_text|>",)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_is_not_meant_stays(tmp_path, change):
    as_written = write_folder(tmp_path, LLAMAS, **change).encode(TEXT).ids
    assert tokens_of(tmp_path) == as_written
