"""What a GGUF file does not say of its special tokens, their texts do."""

import pytest

from pipezoo_core.errors import UnsupportedTokenizerError
from pipezoo_core.tokenizer import tokenizer_from_gguf
from pipezoo_core.tokenizer.gguf import gguf_end_tokens

NORMAL, CONTROL = 1, 3
# As llama.cpp has them, one of each family that is served or often met.
ENDS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>", "[EOS]"),
    *("<|end_of_text|>", "<end_of_utterance>", "<｜end▁of▁sentence｜>", "<|fim_pad|>", "<|repo_name|>"),
)
FILL_IN = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<PRE>", "<｜fim▁hole｜>")


@pytest.fixture
def metadata_with(byte_level_metadata):
    """The byte-level vocabulary with more tokens, of one type, and other named ids."""

    def build(*texts, type_=NORMAL, **named):
        found = dict(byte_level_metadata)
        for name, new in (("tokens", list(texts)), ("token_type", [type_] * len(texts))):
            found[f"tokenizer.ggml.{name}"] = [*found[f"tokenizer.ggml.{name}"], *new]
        del found["tokenizer.ggml.eot_token_id"]
        return found | {f"tokenizer.ggml.{key}": value for key, value in named.items()}

    return build


def id_of(metadata, text):
    return metadata["tokenizer.ggml.tokens"].index(text)


@pytest.mark.parametrize("type_", [NORMAL, CONTROL])
@pytest.mark.parametrize("text", ENDS)
def test_an_end_is_found_by_its_text_whatever_its_type(metadata_with, text, type_):
    metadata = metadata_with(text, type_=type_)
    end, eos = id_of(metadata, text), id_of(metadata, "<eos>")
    assert {end, eos} <= gguf_end_tokens(metadata)
    tokenizer = tokenizer_from_gguf(metadata)
    assert tokenizer.encode(f"a{text}b", add_special_tokens=False) == [ord("a"), end, ord("b")]
    assert tokenizer.decode([ord("a"), end, ord("b")], skip_special_tokens=True) == "ab"


@pytest.mark.parametrize("text", FILL_IN)
def test_marks_of_code_to_fill_in_are_tokens_and_no_ends(metadata_with, text):
    metadata = metadata_with(text)
    mark = id_of(metadata, text)
    assert mark not in gguf_end_tokens(metadata)
    assert tokenizer_from_gguf(metadata).encode(f"a{text}", add_special_tokens=False) == [ord("a"), mark]


def test_a_named_token_stands_for_its_texts(metadata_with):
    """Where the file says which token pads, another that is called so is none."""
    metadata = metadata_with("<|fim_pad|>", "<other>", type_=CONTROL)
    named = metadata | {"tokenizer.ggml.fim_pad_token_id": id_of(metadata, "<other>")}
    assert id_of(metadata, "<|fim_pad|>") in gguf_end_tokens(metadata)
    assert id_of(metadata, "<other>") in gguf_end_tokens(named)
    assert id_of(metadata, "<|fim_pad|>") not in gguf_end_tokens(named)


def test_an_end_of_a_part_is_no_end(metadata_with):
    """Where answers have parts they end with <|return|> or <|call|>; <|end|> ends a part, and is shown."""
    metadata = metadata_with("<|return|>", "<|call|>", "<|end|>", type_=CONTROL)
    ends = gguf_end_tokens(metadata)
    assert {id_of(metadata, "<|return|>"), id_of(metadata, "<|call|>")} <= ends
    assert id_of(metadata, "<|end|>") not in ends
    tokenizer = tokenizer_from_gguf(metadata)
    assert tokenizer.decode([id_of(metadata, "<|end|>")], skip_special_tokens=True) == "<|end|>"
    alone = metadata_with("<|end|>")
    assert id_of(alone, "<|end|>") in gguf_end_tokens(alone)


def test_texts_that_look_like_nothing_stay_what_they_are(metadata_with):
    metadata = metadata_with("<|banana|>")
    assert id_of(metadata, "<|banana|>") not in gguf_end_tokens(metadata)
    tokens = tokenizer_from_gguf(metadata).encode("<|banana|>", add_special_tokens=False)
    assert tokens != [id_of(metadata, "<|banana|>")]


def without_names(metadata, **changes):
    named = {key for key in metadata if key.endswith("_token_id")}
    less = {key: value for key, value in metadata.items() if key not in named}
    return less | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


def test_a_byte_level_file_without_names_has_falcons_token(byte_level_metadata):
    """llama.cpp takes token 11 for the beginning and the end; a word is refused there."""
    types = list(byte_level_metadata["tokenizer.ggml.token_type"])
    as_word = without_names(byte_level_metadata, add_bos_token=True)
    with pytest.raises(UnsupportedTokenizerError, match="wants a bos_token added, but names none"):
        tokenizer_from_gguf(as_word)
    assert 11 not in gguf_end_tokens(as_word)
    as_control = as_word | {"tokenizer.ggml.token_type": [*types[:11], CONTROL, *types[12:]]}
    assert tokenizer_from_gguf(as_control).encode("a") == [11, ord("a")]
    assert gguf_end_tokens(as_control) == {11, id_of(as_control, "<eos>")}
    named = as_control | {"tokenizer.ggml.bos_token_id": types.index(CONTROL)}
    assert tokenizer_from_gguf(named).encode("a") == [types.index(CONTROL), ord("a")]


def test_sentencepiece_without_types_has_the_usual_tokens(sentencepiece_metadata):
    less = without_names(
        sentencepiece_metadata, token_type=[NORMAL] * len(sentencepiece_metadata["tokenizer.ggml.tokens"])
    )
    assert tokenizer_from_gguf(less).encode("there")[0] == 1
    assert gguf_end_tokens(less) == {2}


@pytest.mark.parametrize("missing", ["bos_token_id", "eos_token_id", "unknown_token_id"])
def test_sentencepiece_without_ids_has_the_usual_ones(sentencepiece_metadata, sentencepiece, missing):
    less = {key: value for key, value in sentencepiece_metadata.items() if not key.endswith(missing)}
    tokenizer = tokenizer_from_gguf(less)
    assert tokenizer.encode("there é中\n") == sentencepiece.encode("there é中\n")
    assert gguf_end_tokens(less) == gguf_end_tokens(sentencepiece_metadata) == {2}


@pytest.mark.parametrize(
    ("entries", "takes_it"),
    [
        ({"general.architecture": "phi3"}, True),
        ({"general.architecture": "llama", "general.name": "Phi-3 mini"}, True),
        ({"general.architecture": "llama", "general.name": "Other"}, False),
        ({}, False),
    ],
    ids=str,
)
def test_white_space_behind_phi_3s_tokens_is_theirs(sentencepiece_metadata, entries, takes_it):
    tokenizer = tokenizer_from_gguf(sentencepiece_metadata | entries)
    with_it, without = (tokenizer.encode(text, add_special_tokens=False) for text in ("</s>\n a", "</s>a"))
    assert (with_it == without) == takes_it
    with_it, without = (tokenizer.encode(text, add_special_tokens=False) for text in ("<s>\n a", "<s>a"))
    assert with_it != without


def test_white_space_behind_phi_4s_tokens_is_text(metadata_with):
    metadata = metadata_with("<|im_end|>") | {"general.architecture": "phi3"}
    tokenizer = tokenizer_from_gguf(metadata)
    assert tokenizer.decode(tokenizer.encode("<|im_end|>\n a")) == "<|im_end|>\n a"
