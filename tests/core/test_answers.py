"""Several answers to one prompt as requests of their own, for any pipeline that has `execute`."""

import random
import time

import pytest

from pipezoo_core.context import TextContext
from pipezoo_core.errors import InvalidRequestError
from pipezoo_core.interfaces import GenerateMixin
from pipezoo_core.interfaces.answers import Answers
from pipezoo_core.interfaces.generate import new_contexts
from pipezoo_core.request import GenerationStatus, TextGenerationOutput, TextGenerationRequest
from pipezoo_core.sampling_params import SamplingParams


def request_of(request_id, **sampling):
    params = SamplingParams(**sampling) if sampling else None
    return TextGenerationRequest(prompt=[1], request_id=request_id, sampling_params=params)


def test_each_answer_is_a_request_with_a_seed_of_its_own():
    given = [request_of("a"), request_of("b", n=3, seed=2**64 - 2), request_of("c", n=2), request_of("d", n=1, seed=4)]
    answers = Answers(given)
    assert answers.requests[0] is given[0]
    assert answers.requests[-1] is given[-1]
    ids = [request.request_id for request in answers.requests]
    assert (ids[0], ids[1], ids[4], ids[6]) == ("a", "b", "c", "d")
    assert len(set(ids)) == len(ids) == 7
    assert [request.sampling_params.seed for request in answers.requests[1:4]] == [2**64 - 2, 2**64 - 1, 0]
    assert [request.sampling_params.n for request in answers.requests[1:]] == [1] * 6
    assert [answers.ids_of(request.request_id) for request in given] == [ids[:1], ids[1:4], ids[4:6], ids[6:]]


def test_outputs_are_joined_by_request_and_answer_whatever_their_order():
    answers = Answers([request_of("a", n=2), request_of("b")])
    first, second, other = (request.request_id for request in answers.requests)
    steps = [[(second, "x"), (other, "1")], [(first, "y")], [(other, "2"), (second, "z")]]
    pieces = [[TextGenerationOutput(request_id=of, text=text) for of, text in step] for step in steps]
    named = [answers.named(step) for step in pieces]
    assert [[(o.request_id, o.index) for o in step] for step in named] == (
        [[("a", 1), ("b", 0)], [("a", 0)], [("b", 0), ("a", 1)]]
    )
    a, b = answers.joined(named)
    assert [answer.text for answer in a.answers] == ["y", "xz"]
    assert (b.text, b.answers) == ("12", [b])


class Tokenizer:
    def new_context(self, request):
        return TextContext(
            request_id=request.request_id,
            prompt_tokens=request.prompt,
            max_length=8,
            sampling_params=request.sampling_params or SamplingParams(),
        )


class CountingPipeline(GenerateMixin):
    """The least a pipeline can be: the next token is the seed."""

    kv_managers = ()
    pipeline_config = None
    tokenizer = Tokenizer()

    def __init__(self):
        self.released = []

    def execute(self, inputs):
        outputs = {}
        for context in inputs.batch:
            context.advance(context.sampling_params.seed)
            outputs[context.request_id] = context.output(tokens=context.tokens[-1:])
        return outputs

    def release(self, request_id):
        self.released.append(request_id)


@pytest.mark.parametrize("n", [1, 3])
def test_a_pipeline_that_only_executes_gives_them_too(n):
    pipeline = CountingPipeline()
    outputs = pipeline.generate([request_of("a", n=n, seed=5, max_new_tokens=2), request_of("b", seed=1)])
    assert [answer.tokens for answer in outputs[0].answers] == [[5 + i] * 2 for i in range(n)]
    assert [answer.index for answer in outputs[0].answers] == list(range(n))
    assert outputs[1].tokens == [1] * 7
    assert {output.final_status for output in outputs} == {GenerationStatus.MAXIMUM_LENGTH}
    assert len(pipeline.released) == n + 1


class WatchedTokenizer(Tokenizer):
    def __init__(self):
        self.begun = []

    def new_context(self, request):
        self.begun.append((request.request_id, time.monotonic()))
        if request.request_id == "bad":
            raise InvalidRequestError("a bad prompt")
        return super().new_context(request)


def test_a_prompt_is_tokenized_once_for_all_its_answers():
    tokenizer = WatchedTokenizer()
    answers = Answers([request_of("a", n=3, seed=5), request_of("bad", n=2), request_of("b")])
    contexts, failed = new_contexts(tokenizer, answers)
    assert [request_id for request_id, _ in tokenizer.begun] == ["a", "bad", "b"]
    assert [context.request_id for context in contexts] == [*answers.ids_of("a"), "b"]
    assert [output.request_id for output in failed] == answers.ids_of("bad")
    draws = [[context.draw() for _ in range(3)] for context in contexts[:3]]
    assert draws == [[number.random() for _ in range(3)] for number in map(random.Random, (5, 6, 7))]
    contexts[0].set_chunk(1)
    contexts[0].advance(7)
    assert [context.tokens for context in contexts] == [[1, 7], [1], [1], [1]]
    assert [context.token_counts.up_to_now()[0].tolist() for context in contexts[:2]] == [[1, 7], [1]]
    assert [context.generated_counts.up_to_now()[0].tolist() for context in contexts[:2]] == [[7], []]


def test_time_counts_from_the_call_and_not_from_the_turn_of_a_prompt():
    tokenizer = WatchedTokenizer()
    before = time.monotonic()
    contexts, _ = new_contexts(tokenizer, Answers([request_of("a", n=2), request_of("b"), request_of("c")]))
    (arrival_time,) = {context.arrival_time for context in contexts}
    assert before <= arrival_time <= tokenizer.begun[0][1]
