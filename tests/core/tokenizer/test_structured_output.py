"""The vocabularies of every kind of tokenizer, as grammars see them."""

import random
import re

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, Unigram
from transformers import PreTrainedTokenizerFast

from pipezoo_core.errors import UnsupportedTokenizerError
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_core.structured_output import GrammarCompiler

KINDS = ["byte_level", "sentencepiece", "smollm2"]
REGEX = r"(é|中|😀|the|hello| |\n|12|<bos>|</s>|<think>|a){1,6}\."


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def matcher(tokenizer):
    """A new matcher of a regex."""
    compiler = GrammarCompiler(tokenizer, end_token_ids=[tokenizer.eos_token_id])
    return lambda regex: compiler.matcher(SamplingParams(regex=regex))


def allowed(matcher, **settings):
    bits = np.frombuffer(matcher.ll_matcher.compute_bitmask(), dtype=np.uint8)
    row = np.unpackbits(bits, count=matcher.num_tokens, bitorder="little").view(np.bool_)
    matcher.settle(row, **{"stop_token_ids": [], "may_end": True, **settings})
    return np.flatnonzero(row).tolist()


@pytest.mark.matrix
@pytest.mark.parametrize("seed", range(20))
def test_wherever_the_masks_lead_the_text_matches(tokenizer, matcher, seed):
    rng = random.Random(seed)
    prompt = tokenizer.encode("the", add_special_tokens=False)
    followed, tokens = matcher(REGEX), []
    while not followed.is_done:
        tokens.append(rng.choice(allowed(followed)))
        followed.consume(tokens[-1])
    assert followed.error is None
    text = tokenizer.decode(prompt + tokens, skip_special_tokens=True)[len(tokenizer.decode(prompt)) :]
    assert re.fullmatch(REGEX, text)


@pytest.mark.parametrize("text", ["hello world", "café, 中 and 😀", 'say "hi"\n\tthere\\', "12  12", "<bos>", "</s>"])
def test_a_text_is_followed_to_its_end(tokenizer, matcher, text):
    tokens = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    prefix = " " * tokenizer.convert_ids_to_tokens(tokens[0]).startswith("▁")  # SentencePiece's, seen behind a prompt
    followed = matcher("".join(f"\\x{{{ord(char):x}}}" for char in prefix + text))
    for token in tokens:
        assert not followed.is_done
        followed.consume(token)
    assert followed.error is None
    assert followed.is_complete


def test_special_and_end_tokens_are_no_text(tokenizer, matcher):
    tokens = allowed(matcher("(?s:.*)"))
    assert not set(tokens) & set(tokenizer.all_special_ids)
    assert tokenizer.eos_token_id in allowed(matcher("(?s:.*)"), stop_token_ids=[tokenizer.eos_token_id])
    assert tokenizer.eos_token_id not in allowed(matcher("(?s:.+)"), stop_token_ids=[tokenizer.eos_token_id])
    ordinary = tokenizer.encode("12", add_special_tokens=False)[-1]
    assert ordinary in tokens
    also_an_end = GrammarCompiler(tokenizer, end_token_ids=[ordinary]).matcher(SamplingParams(regex="(?s:.*)"))
    assert set(tokens) - set(allowed(also_an_end)) == {ordinary}


def test_the_tokenizer_is_left_as_it_is(tokenizer, matcher):
    before = tokenizer.backend_tokenizer.to_str()
    matcher("a")
    assert tokenizer.backend_tokenizer.to_str() == before


LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
IDS = {
    "no gap": {letter: i for i, letter in enumerate(LETTERS)},
    "a gap before the last": {**{letter: i for i, letter in enumerate(LETTERS)}, "ab": 257},
    "a large gap": {**{letter: i for i, letter in enumerate(LETTERS)}, "ab": 5000},
    "every other one": {letter: 2 * i for i, letter in enumerate(LETTERS)},
    "from seven on": {letter: i + 7 for i, letter in enumerate(LETTERS)},
}


def with_ids(ids, *, added):
    tokenizer = Tokenizer(BPE(ids, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if added:
        tokenizer.add_special_tokens([AddedToken("<x>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.matrix
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("name", IDS)
def test_ids_with_gaps(name, added):
    tokenizer = with_ids(IDS[name], added=added)
    expected = {ids for token, ids in IDS[name].items() if token[0] in "ab"}
    if tokenizer.convert_tokens_to_ids("<x>") in expected:
        pytest.skip("the library itself gives two tokens one id")
    compiler = GrammarCompiler(tokenizer, end_token_ids=[])
    followed = compiler.matcher(SamplingParams(regex="[ab]*"))
    assert set(allowed(followed)) == expected
    for token in expected:
        followed.consume(token)
    assert followed.error is None
    assert set(allowed(compiler.matcher(SamplingParams(regex="(?s:.*)")))) <= set(IDS[name].values())


def test_a_list_of_pieces_has_no_gaps():
    tokenizer = Tokenizer(Unigram([("<unk>", 0.0), ("▁", -1.0), ("a", -2.0), ("b", -2.0)], 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken("<x>", special=True)])
    compiler = GrammarCompiler(PreTrainedTokenizerFast(tokenizer_object=tokenizer), end_token_ids=[])
    assert allowed(compiler.matcher(SamplingParams(regex="[ab]*"))) == [2, 3]


def test_ids_that_are_far_apart_are_refused():
    compiler = GrammarCompiler(with_ids({**IDS["no gap"], "ab": 2**18}, added=False), end_token_ids=[])
    with pytest.raises(UnsupportedTokenizerError, match="have no token"):
        compiler.matcher(SamplingParams(regex="a"))
