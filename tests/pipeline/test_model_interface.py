"""A model's own interface, as one calls it who does without the pipeline: rows of logits, sizes, several steps."""

import json
from itertools import pairwise

import pytest
import torch
from tiny_models import cache_memory, load_model, make_llama

from pipezoo import registry
from pipezoo_core.config import KVCacheConfig, ReturnLogits
from pipezoo_core.context import TextContext, TextGenerationInputs
from pipezoo_core.request import TextGenerationOutput, TextGenerationRequest
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_llama.model import LlamaPipelineModel
from pipezoo_llama.weight_adapters import adapt_safetensors

PROMPTS = [[5, 9, 2, 7], [11], [3, 1, 4, 1, 5, 9, 2]]


@pytest.fixture(scope="module")
def reference():
    return make_llama()


@pytest.fixture(scope="module")
def load(reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    reference.save_pretrained(folder)

    def load(return_logits=ReturnLogits.VARIABLE, **settings):
        return load_model(
            LlamaPipelineModel, folder, reference.config, adapt_safetensors, return_logits=return_logits, **settings
        )

    return load


def make_context(request_id, prompt):
    return TextContext(request_id=request_id, prompt_tokens=prompt, max_length=100, sampling_params=SamplingParams())


def claim(model, prompts, num_steps=1):
    """Makes contexts, all of their tokens one chunk, that have pages for so many steps."""
    contexts = [make_context(str(i), prompt) for i, prompt in enumerate(prompts)]
    for context in contexts:
        model.kv_manager.external_claim(context)
        context.set_chunk(context.num_pending)
    assert all(model.kv_manager.maybe_reserve(context, num_steps) for context in contexts)
    return contexts


def expected_logits(reference, tokens):
    with torch.no_grad():
        return reference(torch.tensor([tokens])).logits[0]


@pytest.mark.parametrize(
    ("return_logits", "return_n_logits", "lengths"),
    [
        (ReturnLogits.LAST_TOKEN, 1, [1, 1, 1]),
        (ReturnLogits.LAST_TOKEN, 3, [1, 1, 1]),
        (ReturnLogits.VARIABLE, 1, [1, 1, 1]),
        (ReturnLogits.VARIABLE, 3, [3, 1, 3]),
        (ReturnLogits.VARIABLE, 100, [4, 1, 7]),
        (ReturnLogits.ALL, 1, [4, 1, 7]),
    ],
)
def test_rows_of_logits(load, reference, return_logits, return_n_logits, lengths):
    model = load(return_logits)
    contexts = claim(model, PROMPTS)
    inputs = model.prepare_initial_token_inputs(
        contexts, model.kv_manager.fetch(contexts), return_n_logits=return_n_logits
    )
    outputs = model.execute(inputs)
    offsets = outputs.logit_offsets.tolist()
    assert [end - start for start, end in pairwise(offsets)] == lengths
    assert outputs.logits.shape == (sum(lengths), 99)
    assert outputs.next_token_logits.shape == (3, 99)
    for i, prompt in enumerate(PROMPTS):
        expected = expected_logits(reference, prompt)
        torch.testing.assert_close(outputs.logits[offsets[i] : offsets[i + 1]], expected[-lengths[i] :])
        torch.testing.assert_close(outputs.next_token_logits[i], expected[-1])


def test_next_token_inputs_go_on_where_the_step_before_ended(load, reference):
    model = load()
    contexts = claim(model, PROMPTS, num_steps=2)
    inputs = model.prepare_initial_token_inputs(contexts, model.kv_manager.fetch(contexts, 2))
    next_tokens = model.execute(inputs).next_token_logits.argmax(-1)
    for context, token in zip(contexts, next_tokens.tolist(), strict=True):
        context.advance(token)
        context.set_chunk(1)
    model.kv_manager.step(contexts)
    inputs.update(kv_cache_inputs=model.kv_manager.fetch(contexts))
    inputs = model.prepare_next_token_inputs(next_tokens, inputs)
    tokens, row_offsets = list(inputs)[:2]
    assert tokens.tolist() == next_tokens.tolist()
    assert row_offsets.tolist() == [0, 1, 2, 3]
    outputs = model.execute(inputs)
    assert outputs.logit_offsets.tolist() == [0, 1, 2, 3]
    for context, row in zip(contexts, outputs.logits, strict=True):
        torch.testing.assert_close(row, expected_logits(reference, context.tokens)[-1])


@pytest.mark.parametrize("max_length", [3, 16, 17, 50])
def test_optimal_batch_size_is_how_many_longest_requests_get_pages(load, max_length):
    memory = cache_memory(20) + 5  # 20 pages of 8 tokens, and a bit
    model = load(max_length=max_length, kv_cache=KVCacheConfig(page_size=8, kv_cache_memory=memory))
    contexts = [make_context(str(i), [i] * max_length) for i in range(40)]
    num_fit = 0
    for context in contexts:
        model.kv_manager.external_claim(context)
        context.set_chunk(context.num_pending)
        num_fit += model.kv_manager.maybe_reserve(context)
    found = LlamaPipelineModel.infer_optimal_batch_size(
        model.pipeline_config, memory, model.huggingface_config, model.devices, model.kv_cache_config, model.dtype
    )
    assert found == num_fit


def run_steps(llm, requests, num_steps):
    """Runs requests as one batch by `execute` alone, one call per `num_steps` tokens."""
    contexts = [llm.tokenizer.new_context(request) for request in requests]
    pieces = {context.request_id: [] for context in contexts}
    while batch := {c.request_id: c for c in contexts if not c.status.is_done}:
        for context in batch.values():
            context.set_chunk(context.num_pending)
        for request_id, output in llm.execute(TextGenerationInputs([batch], num_steps=num_steps)).items():
            pieces[request_id].append(output)
        llm.kv_managers[0].check_integrity()
    for context in contexts:
        llm.release(context.request_id)
    return [TextGenerationOutput.joined(of_one) for of_one in pieces.values()]


@pytest.mark.parametrize("num_steps", [2, 7, 100])
def test_several_steps_at_once_give_the_tokens_of_one_by_one(load_tiny, num_steps):
    """Requests of one batch that end at different steps, greedy and drawn, with and without log probabilities."""
    llm = load_tiny()
    settings = [
        {"temperature": 0.0, "max_new_tokens": 12},
        {"temperature": 0.0, "max_new_tokens": 5, "log_probabilities": 2},
        {"temperature": 1.0, "seed": 3, "max_new_tokens": 17},
        {"temperature": 0.0, "max_new_tokens": 1},
        {"temperature": 1.0, "seed": 4, "repetition_penalty": 1.3, "max_new_tokens": 9, "echo": True,
         "log_probabilities": 1},
    ]  # fmt: skip
    requests = [
        TextGenerationRequest(prompt="hello"[: 1 + i], sampling_params=SamplingParams(ignore_eos=True, **own))
        for i, own in enumerate(settings)
    ]
    expected = run_steps(llm, requests, 1)
    assert [len(output.tokens) for output in expected] == [12, 5, 17, 1, 9]
    for found, one_by_one in zip(run_steps(llm, requests, num_steps), expected, strict=True):
        assert (found.tokens, found.text, found.final_status) == (
            one_by_one.tokens,
            one_by_one.text,
            one_by_one.final_status,
        )
        assert (found.log_probabilities is None) == (one_by_one.log_probabilities is None)
        for entry, other in zip(found.log_probabilities or [], one_by_one.log_probabilities or [], strict=True):
            assert entry.token_log_probabilities == pytest.approx(other.token_log_probabilities, abs=1e-5)


def test_layers_and_lengths_are_the_configs(of_each_plugin):
    _, folder = of_each_plugin
    config = json.loads((folder / "config.json").read_text())
    plan = registry.plan(folder, device="cpu")
    model = plan.architecture.pipeline_model
    huggingface_config = plan.files.huggingface_config
    assert model.get_num_layers(huggingface_config) == config.get("num_hidden_layers", config.get("n_layers"))
    length = model.calculate_max_seq_len(plan.pipeline_config, huggingface_config)
    assert length == config.get("max_position_embeddings", config.get("max_seq_len"))
