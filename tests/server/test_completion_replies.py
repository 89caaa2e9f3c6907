"""The words of `/v1/completions`, without a server."""

from pipezoo.serve.replies.completion import CompletionReply, CompletionWishes, GivenPrompt
from pipezoo.serve.replies.heading import Heading
from pipezoo_core.request import GenerationStatus, LogProbabilities, TextGenerationOutput

TEXTS = ["<s>", "<mark>", "a", "b"]


class FourTokens:
    """A tokenizer whose first two tokens are special ones."""

    def text_of(self, token):
        return TEXTS[token]

    def decode(self, tokens, *, skip_special_tokens):
        return "".join(TEXTS[token] for token in tokens if token > 1 or not skip_special_tokens)


def offsets(given, tokens):
    wishes = CompletionWishes(
        n=1, echo=True, num_tokens=1, num_logprobs=0, num_prompt_logprobs=None, skip_special_tokens=True, usage=False
    )
    reply = CompletionReply(Heading("cmpl-1", "tiny"), [GivenPrompt(given, tokens, False)], wishes, FourTokens())
    num = len(tokens)
    entry = LogProbabilities([-1.0] * num, [{}] * num, token_texts=dict(enumerate(TEXTS)))
    output = TextGenerationOutput(
        request_id="1", text="b", tokens=[3], log_probabilities=[entry], final_status=GenerationStatus.MAXIMUM_LENGTH
    )
    [choice] = reply.whole([[output]])["choices"]
    return choice["text"], choice["logprobs"]["text_offset"]


def test_a_token_that_the_tokenizer_put_in_front_has_no_place_in_the_text():
    assert offsets("ab", [0, 2, 3]) == ("abb", [0, 0, 1, 2])


def test_special_tokens_have_places_where_the_client_wrote_them_out():
    assert offsets("a<mark>b", [0, 2, 1, 3]) == ("a<mark>bb", [0, 0, 1, 7, 8])


def test_those_of_a_prompt_of_ids_have_none_where_special_tokens_are_skipped():
    assert offsets([0, 2, 1, 3], [0, 2, 1, 3]) == ("abb", [0, 0, 1, 1, 2])
