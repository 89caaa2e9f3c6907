"""Several answers to one prompt as requests of their own, for any pipeline that has `execute`."""

import pytest

from pipezoo_core.context import TextContext
from pipezoo_core.interfaces import GenerateMixin
from pipezoo_core.interfaces.answers import Answers
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
