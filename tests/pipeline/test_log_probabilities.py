"""Log probabilities of answers and echoed prompts: those of transformers, in memory that prompts do not add to."""

import weakref

import pytest
import torch
from gguf_files import TOKENS
from torch.utils._python_dispatch import TorchDispatchMode

from pipezoo_core.decoder.estimates import _OTHERS, _SAMPLED_BYTES, _THREAD
from pipezoo_core.request import TextGenerationRequest
from pipezoo_core.sampling_params import NUM_ECHOED_AT_ONCE, NUMBERS_SAMPLED_AT_ONCE, SamplingParams

pytestmark = pytest.mark.slow

GREEDY = {"temperature": 0.0, "max_new_tokens": 12, "ignore_eos": True}
SAMPLED = {"temperature": 1.0, "seed": 5, "max_new_tokens": 9, "ignore_eos": True}
MIXED = [
    (40, {**GREEDY, "log_probabilities": 3, "echo": True}),
    (1, {**GREEDY}),
    (17, {**GREEDY, "log_probabilities": 5}),
    (1, {**SAMPLED, "log_probabilities": 1, "echo": True}),
    (60, {**SAMPLED, "log_probabilities": 4, "echo": True, "repetition_penalty": 1.5, "top_k": 20}),
    (8, {**SAMPLED, "log_probabilities": 2, "logit_bias": {3: 5.0}}),
    (33, {**GREEDY, "log_probabilities": 128, "echo": True, "max_new_tokens": 1}),
    (24, {**SAMPLED}),
    (30, {**SAMPLED, "log_probabilities": 0}),
    (21, {**GREEDY, "log_probabilities": 0, "echo": True}),
]


def make_requests(cases):
    return [
        TextGenerationRequest(
            prompt=[(7 * i + 3 * j) % 250 for j in range(length)], sampling_params=SamplingParams(**settings)
        )
        for i, (length, settings) in enumerate(cases)
    ]


def check(output, request, reference):
    params = request.sampling_params
    if params.log_probabilities is None:
        assert output.log_probabilities is None
        return
    tokens = [*request.prompt, *output.tokens]
    first = 1 if params.echo else len(request.prompt)
    with torch.no_grad():
        expected = reference(torch.tensor([tokens])).logits[0].log_softmax(-1)
    assert len(output.log_probabilities) == len(output.tokens)
    own = [value for entry in output.log_probabilities for value in entry.token_log_probabilities]
    top = [values for entry in output.log_probabilities for values in entry.top_log_probabilities]
    ranks = [rank for entry in output.log_probabilities for rank in entry.token_ranks]
    assert len(own) == len(top) == len(ranks) == len(tokens) - first
    for entry in output.log_probabilities:
        assert entry.token_texts.keys() == {token for best in entry.top_log_probabilities for token in best}
    for position, (value, best) in enumerate(zip(own, top, strict=True), start=first):
        row = expected[position - 1]
        assert value == pytest.approx(row[tokens[position]].item(), abs=1e-4)
        for token in best:
            assert best[token] == pytest.approx(row[token].item(), abs=1e-4)
        greatest = row.topk(params.log_probabilities).values.tolist()
        assert sorted(best.values(), reverse=True)[: len(greatest)] == pytest.approx(greatest, abs=1e-4)
        assert tokens[position] in best
        assert len(best) <= params.log_probabilities + 1
        slack = 1e-4  # of tokens that are nearly as likely
        rank = ranks[position - first]
        assert (row > row[tokens[position]] + slack).sum() < rank <= 1 + (row > row[tokens[position]] - slack).sum()


@pytest.mark.parametrize(
    "settings", [{}, {"max_batch_tokens": 7}, {"max_batch_size": 2}], ids=["together", "in chunks", "two at a time"]
)
def test_they_are_those_of_transformers(load_tiny, of_each_plugin, settings):
    reference, folder = of_each_plugin
    llm = load_tiny(folder, **settings)
    requests = make_requests(MIXED)
    for output, request in zip(llm.generate(requests), requests, strict=True):
        check(output, request, reference)


def test_they_are_those_of_transformers_after_preemption(load_tiny, of_each_plugin):
    reference, folder = of_each_plugin
    params = load_tiny(folder).kv_managers[0].params
    num_pages = params.num_pages_held(80, max_chunk=1)[0] + 1
    llm = load_tiny(folder, kv_cache_memory=num_pages * params.page_bytes[0], max_length=80)
    requests = make_requests(MIXED)
    for output, request in zip(llm.generate(requests), requests, strict=True):
        check(output, request, reference)
    assert llm.scheduler.num_preemptions > 0


class LogitWatch(TorchDispatchMode):
    """Counts the tensors whose rows are as long as the vocabulary: the most rows of one, the most bytes alive."""

    def __init__(self):
        super().__init__()
        self.alive, self.most_rows, self.most_bytes = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (len(TOKENS),):
                self.note(tensor)
        return result

    def note(self, tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self.ignored:
            return
        self.most_rows = max(self.most_rows, tensor.numel() // len(TOKENS))
        self.alive[storage.data_ptr()] = weakref.ref(tensor), storage.nbytes()
        self.alive = {key: value for key, value in self.alive.items() if value[0]() is not None}
        self.most_bytes = max(self.most_bytes, sum(size for _, size in self.alive.values()))


@pytest.mark.parametrize("max_batch_size", [1, 4, 40])
def test_the_logits_of_a_long_prompt_take_what_the_plan_counts(load_tiny, of_each_plugin, max_batch_size, monkeypatch):
    reference, folder = of_each_plugin
    few = 5 * len(TOKENS)
    monkeypatch.setattr("pipezoo_core.log_probabilities.NUMBERS_SAMPLED_AT_ONCE", few)
    monkeypatch.setattr("pipezoo_core.pipeline.sampler.NUMBERS_SAMPLED_AT_ONCE", few)
    llm = load_tiny(folder, max_batch_size=max_batch_size)
    cases = [(230, {**GREEDY, "log_probabilities": 2, "echo": True}), *MIXED] * (2 if max_batch_size > 1 else 1)
    requests = make_requests(cases)
    watch = LogitWatch()
    watch.ignored = {parameter.untyped_storage().data_ptr() for parameter in llm.model.module.parameters()}
    with watch:
        outputs = llm.generate(requests)
    for output, request in zip(outputs, requests, strict=True):
        check(output, request, reference)
    most_rows = max_batch_size + NUM_ECHOED_AT_ONCE
    assert max_batch_size < watch.most_rows <= most_rows
    counted = (most_rows + max_batch_size) * len(TOKENS) * 4
    assert watch.most_bytes <= counted + few * _SAMPLED_BYTES
    others = _OTHERS + _THREAD * torch.get_num_threads() + NUMBERS_SAMPLED_AT_ONCE * _SAMPLED_BYTES
    assert counted <= llm.memory_plan.activations - others


@pytest.mark.parametrize("num_others", [0, 30])
def test_a_prompt_that_is_echoed_goes_on_beside_others(load_tiny, tiny_reference, num_others):
    """Alone it is fed as many tokens as there may be rows, in a full batch 17."""
    llm = load_tiny(max_batch_size=20)
    fed = []
    execute = llm.model.execute
    llm.model.execute = lambda inputs: (fed.append(inputs.input_row_offsets.diff().max().item()), execute(inputs))[1]
    cases = [(200, {**GREEDY, "log_probabilities": 1, "echo": True}), *[(1, GREEDY)] * num_others]
    requests = make_requests(cases)
    check(llm.generate(requests)[0], requests[0], tiny_reference)
    assert fed[:5] == ([17] * 5 if num_others else [36] * 5)
