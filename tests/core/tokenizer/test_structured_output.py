"""The vocabularies of every kind of tokenizer, as grammars see them."""

import random
import re

import numpy as np
import pytest

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
