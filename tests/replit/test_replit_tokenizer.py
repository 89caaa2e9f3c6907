"""The tokenizer of Replit's first model, against the `sentencepiece` library on the same vocabulary."""

import json
import shutil

import pytest
import sentencepiece
from replit.conftest import CODE

from pipezoo_core.errors import UnsupportedTokenizerError
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_core.tokenizer import TextStream, TextTokenizer, load_tokenizer
from pipezoo_replit import tokenizer as of_plugin

TEXTS = [CODE, "def f(x):\n\treturn x", "  two  spaces  ", "é, 日本 and 🙂", "", " ", "\n\n", "<|pad", "width▁height"]


def load(folder):
    return TextTokenizer(
        load_tokenizer(folder, of_plugin.load_tokenizer),
        max_length=2048,
        sampling_params=SamplingParams(),
        eos_token_ids={1},
    )


def pieces_of(folder):
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_and_text_are_those_of_sentencepiece(vocabulary, text):
    tokenizer, pieces = load(vocabulary), pieces_of(vocabulary)
    tokens = tokenizer.encode(text).tolist()
    assert tokens == pieces.encode(text)
    assert tokenizer.decode(tokens) == pieces.decode(tokens).replace(" ⁇ ", "")  # unknown ones are special tokens


@pytest.mark.parametrize("text", TEXTS)
def test_code_comes_back_as_it_was(code_vocabulary, text):
    tokenizer = load(code_vocabulary)
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("▁", " ")


def test_special_tokens_are_found_in_text_and_left_out_of_it(code_vocabulary):
    tokenizer, pieces = load(code_vocabulary), pieces_of(code_vocabulary)
    tokens = tokenizer.encode(" def<|endoftext|>  pop<|pad|>").tolist()
    assert tokens == [*pieces.encode(" def"), 1, *pieces.encode("  pop"), 0]
    assert tokenizer.decode(tokens) == " def  pop"
    delegate = tokenizer.delegate
    assert (delegate.pad_token_id, delegate.eos_token_id, delegate.unk_token_id, delegate.bos_token) == (0, 1, 2, None)


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_streamed_pieces_are_the_rest_of_the_text(vocabulary, cut):
    tokenizer, pieces = load(vocabulary), pieces_of(vocabulary)
    tokens = pieces.encode(CODE + (" é 🙂" if pieces.piece_to_id("<0xF0>") != pieces.unk_id() else ""))
    stream = TextStream(tokenizer.decode, prompt_tokens=tokens[:cut])
    text = "".join([*map(stream.push, tokens[cut:]), stream.finish()])
    assert pieces.decode(tokens[:cut]) + text == pieces.decode(tokens)


def test_a_token_that_a_later_training_added(code_vocabulary, tmp_path):
    folder = shutil.copytree(code_vocabulary, tmp_path / "model")
    number = pieces_of(folder).get_piece_size()
    (folder / "added_tokens.json").write_text(json.dumps({"<|answer|>": number}))
    tokenizer = load(folder)
    tokens = tokenizer.encode("pop<|answer|>push").tolist()
    assert tokens.count(number) == 1
    assert tokenizer.decode(tokens) == "pop<|answer|>push"


def test_without_the_plugin_it_would_take_remote_code(code_vocabulary):
    with pytest.raises(UnsupportedTokenizerError, match="custom code"):
        load_tokenizer(code_vocabulary)


def test_a_damaged_vocabulary_is_refused(code_vocabulary, tmp_path):
    folder = shutil.copytree(code_vocabulary, tmp_path / "model")
    (folder / "spiece.model").write_bytes(b"\xff" * 100)
    with pytest.raises(UnsupportedTokenizerError, match="cannot be read"):
        load(folder)


def test_a_folder_without_it_is_left_to_transformers(tiny_folder, tmp_path):
    assert of_plugin.load_tokenizer(tiny_folder) is None
    assert load(tiny_folder).decode(load(tiny_folder).encode("hello")) == "hello"
    with pytest.raises(UnsupportedTokenizerError, match="has no tokenizer"):
        load(tmp_path)
