"""Requests of a model with states beside the scheduler, in several replicas, and after a step that failed."""

import os
import re

import pytest
from families import save
from lfm2.tiny_lfm2 import make
from typer.testing import CliRunner

from pipezoo import registry
from pipezoo.cli.main import app
from pipezoo_core.context import TextContext, TextGenerationInputs
from pipezoo_core.errors import InsufficientPagesError, InvalidRequestError
from pipezoo_core.request import TextGenerationRequest
from pipezoo_core.sampling_params import SamplingParams

SETTINGS = {"dtype": "float32", "device": "cpu", "page_size": 8, "kv_cache_memory": "8MiB"}
GREEDY = {"temperature": 0.0, "ignore_eos": True, "max_new_tokens": 20}
PROMPTS = [[number] * 20 + [1, 2, 3] for number in range(3, 9)]


@pytest.fixture(scope="module")
def folder(tiny_folder, tmp_path_factory):
    return save(make(), tmp_path_factory.mktemp("lfm2"), tiny_folder)


def answers(llm):
    requests = [TextGenerationRequest(prompt=prompt) for prompt in PROMPTS]
    return [output.tokens for output in llm.generate(requests, **GREEDY)]


def contexts_of(prompts, name):
    return [
        TextContext(
            request_id=f"{name}{number}",
            prompt_tokens=list(prompt),
            max_length=200,
            sampling_params=SamplingParams(**GREEDY),
        )
        for number, prompt in enumerate(prompts)
    ]


def run(llm, contexts, num_steps):
    inputs = TextGenerationInputs([{context.request_id: context for context in contexts}], num_steps=num_steps)
    return [output.tokens for output in llm.execute(inputs).values()]


def test_info_shows_what_states_take(folder):
    """Two layers keep two tokens' inputs, of 64 numbers; each request has two slots, or one where nothing is shared."""
    slot = 2 * 2 * 64 * 4
    assert registry.plan(folder, **SETTINGS, max_batch_size=4).memory.states == 8 * slot
    assert registry.plan(folder, **SETTINGS, max_batch_size=4, enable_prefix_caching=False).memory.states == 4 * slot
    all_of_them = f"{registry.plan(folder, dtype='float32').memory.states / 2**20:.1f} MiB"
    assert all_of_them != "0.0 MiB"
    result = CliRunner().invoke(app, ["info", str(folder), "--dtype", "float32"], env={**os.environ, "COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert re.search(r"layers with a state\s+│ 2 ", result.output)
    assert re.search(r"state of a request\s+│ 1,024 bytes", result.output)
    assert re.search(rf"states\s+│ {all_of_them}", result.output)


def test_replicas_compute_what_one_does(folder):
    with registry.load(folder, **SETTINGS) as llm:
        alone = answers(llm)
    with registry.load(folder, **SETTINGS, data_parallel_degree=2) as llm:
        assert answers(llm) == alone
        for manager in llm.kv_managers:
            manager.check_integrity()


def test_direct_requests_run_to_their_end_in_as_few_slots_as_they_can(folder):
    """With one slot each, they go over many ends of pages; one more finds none, and is told what there is."""
    with registry.load(folder, **SETTINGS) as llm:
        expected = answers(llm)
    with registry.load(folder, **SETTINGS, max_batch_size=1) as llm:
        num_slots = llm.kv_managers[0].params.num_slots_for(1)
        contexts = contexts_of(PROMPTS[:num_slots], "direct")
        assert run(llm, contexts, 20) == expected[:num_slots]
        with pytest.raises(InsufficientPagesError, match=r"slots for states: 0 free .* greater max_batch_size"):
            run(llm, contexts_of([[5, 6, 7]], "more"), 1)


@pytest.mark.parametrize("num_steps", [1, 4])
def test_a_request_whose_step_failed_is_not_gone_on_with(folder, monkeypatch, num_steps):
    """What the model has written of it is not undone, so that it is refused, until it is released."""
    with registry.load(folder, **SETTINGS) as llm:
        (context,) = contexts_of(PROMPTS[:1], "first")
        run(llm, [context], 4)
        context.set_chunk(1)
        model = llm.models[0]
        real = model.execute

        def fails(inputs):
            real(inputs)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(model, "execute", fails)
            with pytest.raises(KeyboardInterrupt):
                run(llm, [context], num_steps)
        for _ in range(2):
            with pytest.raises(InvalidRequestError, match="step of this request failed"):
                run(llm, [context], num_steps)
        llm.release(context.request_id)
        assert run(llm, contexts_of(PROMPTS[:1], "first"), 20) == answers(llm)[:1]
