"""The words of `/v1/completions`, without a server."""

import pytest
from tokenizers import normalizers

from pipezoo.serve.replies.completion import CompletionReply, CompletionWishes, GivenPrompt
from pipezoo.serve.replies.heading import Heading
from pipezoo_core.request import GenerationStatus, LogProbabilities, TextGenerationOutput
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_core.tokenizer import TextTokenizer, tokenizer_from_gguf

TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdef"]


def tokenizer_of(*, adds_eos=False, normalizer=None):
    """Returns one like Llama 2's: text behind a special token gets a space, and the first space of all is left out."""
    delegate = tokenizer_from_gguf(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": TOKENS,
            "tokenizer.ggml.scores": [0.0] * len(TOKENS),
            "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * 7],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.add_eos_token": adds_eos,
        }
    )
    if normalizer is not None:
        backend = delegate.backend_tokenizer
        backend.normalizer = normalizers.Sequence([normalizer, backend.normalizer])
    return TextTokenizer(delegate, max_length=64, sampling_params=SamplingParams(), eos_token_ids=[2])


def echoed(tokenizer, given, *, skip_special_tokens=True):
    """Returns the text of an echo that is answered with `b`, and the tokens with their offsets."""
    tokens = tokenizer.encode(given).tolist()
    wishes = CompletionWishes(
        n=1,
        echo=True,
        num_tokens=1,
        num_logprobs=0,
        num_prompt_logprobs=None,
        skip_special_tokens=skip_special_tokens,
        usage=False,
    )
    reply = CompletionReply(Heading("cmpl-1", "tiny"), [GivenPrompt(given, tokens, False)], wishes, tokenizer)
    texts = {token: tokenizer.text_of(token) for token in range(len(TOKENS))}
    num = len(tokens)
    entry = LogProbabilities([-1.0] * num, [{}] * num, token_texts=texts)
    output = TextGenerationOutput(
        request_id="1",
        text="b",
        tokens=[TOKENS.index("b")],
        log_probabilities=[entry],
        final_status=GenerationStatus.MAXIMUM_LENGTH,
    )
    [choice] = reply.whole([[output]])["choices"]
    logs = choice["logprobs"]
    return choice["text"], [*zip(logs["tokens"], logs["text_offset"], strict=True)]


@pytest.mark.parametrize("skip_special_tokens", [True, False])
@pytest.mark.parametrize("adds_eos", [True, False])
@pytest.mark.parametrize(
    "given", ["ab", " a b", "ab</s>cd ef", "a </s> b", "<s>a b", "</s></s>a", "a</s>", "éa", "日 é</s>b"]
)
def test_each_token_is_where_the_client_wrote_it(given, adds_eos, skip_special_tokens):
    text, places = echoed(tokenizer_of(adds_eos=adds_eos), given, skip_special_tokens=skip_special_tokens)
    written = [(token, at) for token, at in places if token.strip(" \N{REPLACEMENT CHARACTER}")]
    if not given.startswith("<s>"):
        assert written.pop(0) == ("<s>", 0)
    *own, answer = written
    if adds_eos:
        assert own.pop() == ("</s>", len(given))

    assert text == f"{given}b"
    assert all(given.startswith(token, at) for token, at in own)
    assert "".join(token for token, _ in own) == "".join(each for each in given if each not in " é日")
    assert answer == ("b", len(given))
    offsets = [at for _, at in places]
    assert offsets == sorted(offsets)


@pytest.mark.parametrize(
    ("skip_special_tokens", "text", "offsets"),
    [
        (True, "a bb", [0, 0, 0, 1, 1, 2, 3]),
        (False, "<s> a</s> bb", [0, 3, 4, 5, 9, 10, 11]),
    ],
)
def test_a_prompt_of_ids_has_the_places_of_its_own_text(skip_special_tokens, text, offsets):
    tokenizer = tokenizer_of()
    given = tokenizer.encode("a</s>b").tolist()
    found, places = echoed(tokenizer, given, skip_special_tokens=skip_special_tokens)
    assert (found, [at for _, at in places]) == (text, offsets)


@pytest.mark.parametrize("normalizer", [normalizers.Lowercase(), normalizers.NFKC(), normalizers.StripAccents()])
def test_a_text_that_the_tokenizer_rewrites_has_places_within_it(normalizer):
    for given in ("A B", "ﬀa</s>b", "a\u0301\u0301</s>b"):
        text, places = echoed(tokenizer_of(normalizer=normalizer), given)
        offsets = [at for _, at in places]
        assert offsets == sorted(offsets)
        assert text[offsets[-1] :] == "b"
