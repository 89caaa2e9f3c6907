"""What a caller sees: kinds of prompts, streaming, settings, ends, cancelling, errors, and who shares a step."""

import asyncio
import gc
import json
import shutil
import threading
import weakref

import pytest
from gguf_files import END, TOKENS
from tiny_models import cache_memory

from pipezoo import registry
from pipezoo_core.config import PipelineConfig
from pipezoo_core.context import TextContext, TextGenerationInputs
from pipezoo_core.errors import (
    EmptyPromptError,
    InsufficientPagesError,
    InvalidRequestError,
    InvalidSettingError,
    NonFiniteLogitsError,
    PromptTooLongError,
)
from pipezoo_core.interfaces import GenerateMixin, get_paged_manager
from pipezoo_core.request import (
    GenerationStatus,
    TextGenerationOutput,
    TextGenerationRequest,
)
from pipezoo_core.sampling_params import SamplingParams

GREEDY = {"temperature": 0.0, "max_new_tokens": 12, "ignore_eos": True}
CHAT = [{"role": "user", "content": "hello"}]


def test_a_string_a_chat_a_request_and_a_list_of_these(load_tiny, greedy):
    llm = load_tiny()
    prompts = ["hello", CHAT, TextGenerationRequest(prompt="hello"), TextGenerationRequest(messages=CHAT)]
    text, chat, request, chat_request = llm.generate(prompts, **GREEDY)
    tokens = [TOKENS.index(piece) for piece in ("he", "l", "l", "o")]
    assert text.tokens == request.tokens == greedy(tokens, 12)
    assert chat.tokens == chat_request.tokens != text.tokens
    assert llm.generate("hello", **GREEDY)[0].tokens == text.tokens
    assert llm.generate(CHAT, **GREEDY)[0].tokens == chat.tokens == llm.chat(CHAT, **GREEDY).tokens
    assert text.final_status is GenerationStatus.MAXIMUM_LENGTH
    assert text.log_probabilities is None


def test_stream_is_generate_in_pieces(load_tiny):
    llm = load_tiny()
    whole = llm.generate("hello", **GREEDY)[0].text
    assert "".join(llm.stream("hello", **GREEDY)) == whole


def test_generate_async_streams_every_request(load_tiny):
    llm = load_tiny()
    expected = llm.generate(["hello", "he"], **GREEDY)
    requests = [TextGenerationRequest(prompt="hello"), TextGenerationRequest(prompt="he")]

    async def collect():
        pieces = {request.request_id: [] for request in requests}
        async for outputs in llm.generate_async(requests, **GREEDY):
            for output in outputs:
                pieces[output.request_id].append(output)
        return [TextGenerationOutput.joined(of_one) for of_one in pieces.values()]

    for output, other in zip(asyncio.run(collect()), expected, strict=True):
        assert (output.text, output.tokens, output.final_status) == (other.text, other.tokens, other.final_status)


def test_two_tasks_share_steps(load_tiny):
    llm = load_tiny()
    alone = [llm.generate(prompt, **GREEDY)[0].text for prompt in ("hello", "he")]
    sizes = []
    execute = llm.model.execute
    llm.model.execute = lambda inputs: (sizes.append(len(inputs.input_row_offsets) - 1), execute(inputs))[1]

    async def one(prompt):
        return "".join([output.text async for outputs in llm.generate_async(prompt, **GREEDY) for output in outputs])

    async def both():
        return await asyncio.gather(one("hello"), one("he"))

    assert asyncio.run(both()) == alone
    assert max(sizes) == 2


def test_threads_share_one_pipeline(load_tiny):
    llm = load_tiny()
    prompts = ["hello", "he", "help", "h"]
    alone = [llm.generate(prompt, **GREEDY)[0].text for prompt in prompts]
    found = {}

    def work(prompt):
        found[prompt] = llm.generate(prompt, **GREEDY)[0].text

    threads = [threading.Thread(target=work, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[prompt] for prompt in prompts] == alone


def test_stop_token_ends_the_answer_and_leaves_no_text(load_tiny):
    llm = load_tiny()
    whole = llm.generate("hello", **GREEDY)[0]
    stop = whole.tokens[5]
    at = whole.tokens.index(stop)
    output = llm.generate("hello", **GREEDY, stop_token_ids=[stop])[0]
    assert output.tokens == whole.tokens[: at + 1]
    assert output.final_status is GenerationStatus.END_OF_SEQUENCE
    assert whole.text.startswith(output.text)


def test_end_of_sequence_is_the_models(load_tiny):
    llm = load_tiny()
    settings = {"temperature": 0.0, "max_new_tokens": 5, "logit_bias": {END: 1000.0}}
    output = llm.generate("hello", **settings)[0]
    assert (output.tokens, output.text) == ([END], "")
    assert output.final_status is GenerationStatus.END_OF_SEQUENCE
    assert len(llm.generate("hello", **settings, ignore_eos=True)[0].tokens) == 5
    held = llm.generate("hello", **settings, min_new_tokens=3)[0]
    assert len(held.tokens) == 4
    assert held.tokens[-1] == END


@pytest.mark.parametrize("max_batch_tokens", [2048, 1])
def test_stop_text_is_cut_wherever_tokens_meet(load_tiny, max_batch_tokens):
    llm = load_tiny(max_batch_tokens=max_batch_tokens)
    whole = llm.generate("hello", **GREEDY)[0].text
    for length in (1, 2, 3):
        stop = whole[4 : 4 + length]
        expected = whole[: whole.find(stop)]
        output = llm.generate("hello", **GREEDY, stop=stop)[0]
        assert output.text == expected
        assert output.final_status is GenerationStatus.END_OF_SEQUENCE
        assert "".join(llm.stream("hello", **GREEDY, stop=[stop, "never this"])) == expected


def test_default_length_is_what_is_left_of_the_context(load_tiny):
    llm = load_tiny(max_length=30)
    output = llm.generate("hello", temperature=0.0, ignore_eos=True)[0]
    assert len(output.tokens) == 30 - 4
    assert output.final_status is GenerationStatus.MAXIMUM_LENGTH


def test_seed_repeats_alone_and_in_company(load_tiny):
    llm = load_tiny()
    settings = {"temperature": 1.0, "top_p": 0.95, "max_new_tokens": 20}
    alone = llm.generate("hello", **settings, seed=7)[0].tokens
    assert llm.generate(["he", "hello"], **settings, seed=7)[1].tokens == alone
    assert llm.generate("hello", **settings, seed=8)[0].tokens != alone
    assert len({tuple(llm.generate("hello", **settings)[0].tokens) for _ in range(5)}) > 1


def test_settings_of_a_request_win_over_the_pipelines(load_tiny):
    llm = load_tiny()
    request = TextGenerationRequest(prompt="hello", sampling_params=SamplingParams(**GREEDY))
    assert llm.generate(request)[0].tokens == llm.generate("hello", **GREEDY)[0].tokens
    assert len(llm.generate(request, max_new_tokens=3)[0].tokens) == 3


def test_cancel_ends_a_stream_with_what_there_is(load_tiny):
    llm = load_tiny()
    request = TextGenerationRequest(prompt="hello")
    statuses = []

    async def run():
        async for outputs in llm.generate_async(request, **{**GREEDY, "max_new_tokens": 200}):
            statuses.extend(output.final_status for output in outputs)
            if len(statuses) == 3:
                llm.cancel(request.request_id)

    asyncio.run(run())
    assert statuses[-1] is GenerationStatus.CANCELLED
    assert len(statuses) < 10
    llm.cancel("nobody")


def test_a_closed_stream_gives_back_its_pages(load_tiny):
    llm = load_tiny()
    stream = llm.stream("hello", **{**GREEDY, "max_new_tokens": 200})
    next(stream)
    stream.close()
    assert llm.kv_managers[0].num_free_pages == llm.kv_managers[0].total_num_pages


def test_a_stream_that_the_collector_closes_in_the_middle_of_a_step(load_tiny, greedy):
    llm = load_tiny()
    execute = llm.model.execute
    abandoned = [llm.stream("he", **{**GREEDY, "max_new_tokens": 200})]
    next(abandoned[0])

    def collecting(inputs):
        abandoned.clear()  # in the thread that is inside the step
        return execute(inputs)

    llm.model.execute = collecting
    prompt = list(range(1, 20))
    assert llm.generate(TextGenerationRequest(prompt=prompt), **GREEDY)[0].tokens == greedy(prompt, 12)
    assert not abandoned
    assert llm.kv_managers[0].num_free_pages == llm.kv_managers[0].total_num_pages


def test_a_cancelled_task_gives_back_its_pages(load_tiny):
    llm = load_tiny()

    async def run(begun):
        async for _ in llm.generate_async("hello", **{**GREEDY, "max_new_tokens": 200}):
            begun.set()
            await asyncio.sleep(0)

    async def main():
        begun = asyncio.Event()
        task = asyncio.create_task(run(begun))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("prompt", "settings", "error"),
    [
        ("", {}, EmptyPromptError),
        ([], {}, None),
        (TextGenerationRequest(prompt=[]), {}, EmptyPromptError),
        ("h" * 300, {}, PromptTooLongError),
        (17, {}, InvalidRequestError),
        (TextGenerationRequest(), {}, InvalidRequestError),
        (TextGenerationRequest(prompt="a", messages=CHAT), {}, InvalidRequestError),
        (TextGenerationRequest(prompt=[10**6]), {}, InvalidRequestError),
        ("hello", {"temperature": float("nan")}, InvalidSettingError),
        ("hello", {"temprature": 1.0}, InvalidSettingError),
        ("hello", {"logit_bias": {10**6: 1.0}}, InvalidRequestError),
    ],
)
def test_bad_requests_are_refused_and_the_next_one_is_served(load_tiny, prompt, settings, error):
    llm = load_tiny()
    if error is None:
        assert llm.generate(prompt, **settings) == []
    else:
        with pytest.raises(error) as caught:
            llm.generate(prompt, **settings)
        assert isinstance(caught.value, ValueError)
    assert len(llm.generate("hello", **GREEDY)[0].tokens) == 12


def test_two_requests_with_one_id_are_refused(load_tiny):
    llm = load_tiny()
    request = TextGenerationRequest(prompt="hello")
    with pytest.raises(InvalidRequestError, match="same id"):
        llm.generate([request, request])
    stream = llm.stream(request, **GREEDY)
    next(stream)
    with pytest.raises(InvalidRequestError, match="running already"):
        llm.generate(request)
    assert len("".join(stream)) > 0


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, KeyboardInterrupt])
def test_a_model_that_fails_fails_its_batch_and_nothing_else(load_tiny, error):
    llm = load_tiny()
    execute, calls = llm.model.execute, []

    def failing(inputs):
        calls.append(inputs)
        if len(calls) % 3 == 0:
            raise error("out of luck")
        return execute(inputs)

    llm.model.execute = failing
    with pytest.raises(error, match="out of luck"):
        llm.generate("hello", **GREEDY)
    if issubclass(error, Exception):
        for output in llm.generate(["hello", "he"], **GREEDY):
            assert (len(output.tokens), output.final_status) == (2, GenerationStatus.ERROR)
            assert isinstance(output.error, error)
    else:
        with pytest.raises(error, match="out of luck"):
            llm.generate(["hello", "he"], **GREEDY)
    llm.model.execute = execute
    assert llm.kv_managers[0].num_free_pages == llm.kv_managers[0].total_num_pages
    assert len(llm.generate("hello", **GREEDY)[0].tokens) == 12


BAD = 100  # a token whose embedding is spoiled
BAD_PROMPT = [*range(1, 20), BAD, *range(30, 40)]


@pytest.fixture(params=[float("nan"), float("inf")])
def spoiled(load_tiny, request):
    llm = load_tiny()
    llm.model.module.model.embed_tokens.weight.data[BAD] = request.param
    return llm


def test_logits_that_are_not_finite_end_their_request_and_no_other(spoiled):
    llm = spoiled
    whole = llm.generate("hello", **GREEDY)[0].tokens
    request = TextGenerationRequest(prompt="hello")
    tokens = []

    async def good():
        async for outputs in llm.generate_async(request, **GREEDY):
            tokens.extend(token for output in outputs for token in output.tokens)

    async def bad(settings):
        async for _ in llm.generate_async(TextGenerationRequest(prompt=BAD_PROMPT), **settings):
            pass

    async def all_of_them():
        settings = (GREEDY, {"temperature": 1.0}, {**GREEDY, "log_probabilities": 2, "echo": True})
        return await asyncio.gather(good(), *(bad(own) for own in settings), return_exceptions=True)

    fine, *errors = asyncio.run(all_of_them())
    assert fine is None
    assert tokens == whole
    for error in errors:
        assert isinstance(error, NonFiniteLogitsError)
        assert "after 30 prompt tokens and 0 new ones" in str(error)


def test_a_request_that_failed_leaves_nothing_in_the_prefix_cache(spoiled, greedy, tiny_reference):
    llm = spoiled
    with pytest.raises(NonFiniteLogitsError):
        llm.generate(TextGenerationRequest(prompt=BAD_PROMPT), **GREEDY)
    llm.model.module.model.embed_tokens.weight.data[BAD] = tiny_reference.model.embed_tokens.weight.data[BAD]
    output = llm.generate(TextGenerationRequest(prompt=BAD_PROMPT), **GREEDY)[0]
    assert llm.kv_managers[0].metrics.prefix_hit_tokens == 0
    assert output.tokens == greedy(BAD_PROMPT, 12)


def test_a_chunk_that_is_not_finite_ends_its_request(load_tiny, greedy, tiny_reference):
    """The next chunk would see zeros where it was, and go on as if nothing had been."""
    llm = load_tiny(max_batch_tokens=24)
    weight = llm.model.module.model.embed_tokens.weight.data
    weight[BAD] = float("nan")
    fine, bad = TextGenerationRequest(prompt=[5]), TextGenerationRequest(prompt=BAD_PROMPT)
    answered, failed = llm.generate([fine, bad], **GREEDY)
    assert isinstance(failed.error, NonFiniteLogitsError)
    assert "after 23 prompt tokens and 0 new ones" in str(failed.error)
    assert (answered.tokens, answered.error) == (greedy([5], 12), None)
    weight[BAD] = tiny_reference.model.embed_tokens.weight.data[BAD]
    output = llm.generate(bad, **GREEDY)[0]
    assert llm.kv_managers[0].metrics.prefix_hit_tokens == 0
    assert output.tokens == greedy(BAD_PROMPT, 12)


def test_a_failure_within_several_steps_at_once(spoiled):
    llm = spoiled
    expected = llm.generate("hello", **GREEDY)[0].tokens
    params = SamplingParams(**GREEDY)
    bad, good = (
        llm.tokenizer.new_context(TextGenerationRequest(prompt=prompt, sampling_params=params))
        for prompt in (BAD_PROMPT, "hello")
    )
    outputs = llm.execute(TextGenerationInputs([{c.request_id: c for c in (bad, good)}], num_steps=12))
    assert outputs[bad.request_id].final_status is bad.status is GenerationStatus.ERROR
    assert isinstance(bad.error, NonFiniteLogitsError)
    assert outputs[bad.request_id].error is bad.error
    assert outputs[bad.request_id].tokens == bad.generated_tokens == []
    assert outputs[good.request_id].tokens == expected
    assert good.error is None
    for context in (bad, good):
        llm.release(context.request_id)


def test_execute_alone_runs_several_steps_at_once(load_tiny):
    """`execute` is the step for those who schedule themselves; `num_steps` at once give the same tokens."""
    llm = load_tiny()
    expected = llm.generate("hello", **GREEDY)[0]
    for num_steps in (1, 4, 5):
        context = llm.tokenizer.new_context(
            TextGenerationRequest(prompt="hello", sampling_params=SamplingParams(**GREEDY))
        )
        pieces = []
        while not context.status.is_done:
            context.set_chunk(context.num_pending)
            inputs = TextGenerationInputs([{context.request_id: context}], num_steps=num_steps)
            pieces.append(llm.execute(inputs)[context.request_id])
        llm.release(context.request_id)
        whole = TextGenerationOutput.joined(pieces)
        assert (whole.tokens, whole.text) == (expected.tokens, expected.text)
        assert len(pieces) == -(-12 // num_steps)


def test_several_steps_reserve_what_a_request_may_still_get(load_tiny):
    """The last page ends with the last token that is fed: no step more would find room."""
    llm = load_tiny(kv_cache_memory=cache_memory(8), max_length=60)
    manager = llm.kv_managers[0]
    context = llm.tokenizer.new_context(
        TextGenerationRequest(prompt=[1] * 58, sampling_params=SamplingParams(temperature=0.0, ignore_eos=True))
    )
    context.set_chunk(58)
    output = llm.execute(TextGenerationInputs([{context.request_id: context}], num_steps=50))[context.request_id]
    assert len(output.tokens) == 2
    assert manager.num_free_pages == 0
    llm.release(context.request_id)


def test_a_running_request_that_is_released_ends_as_cancelled(load_tiny):
    llm = load_tiny()
    whole = llm.generate("hello", **GREEDY)[0].text
    request = TextGenerationRequest(prompt="hello")
    pieces = llm.stream(request, **GREEDY)
    text = next(pieces)
    llm.release(request.request_id)
    assert whole.startswith(text + "".join(pieces))
    assert llm.scheduler.num_running == 0


def test_tokens_that_the_model_does_not_know(load_tiny, tiny_folder, tmp_path):
    """The tokenizer has one more than the model."""
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    vocabulary = json.loads((folder / "tokenizer.json").read_text())
    added = vocabulary["added_tokens"][0] | {"id": len(TOKENS), "content": "<|more|>", "special": False}
    vocabulary["added_tokens"].append(added)
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    llm = load_tiny(folder)
    expected = llm.generate("hello", **GREEDY)[0].tokens
    for prompt in ("hello <|more|>", TextGenerationRequest(prompt=[1, len(TOKENS)])):
        with pytest.raises(InvalidRequestError, match=f"{len(TOKENS)}.*0 to {len(TOKENS) - 1}"):
            llm.generate(prompt, **GREEDY)
    for settings in ({"logit_bias": {len(TOKENS): 1.0}}, {"stop_token_ids": [len(TOKENS)]}):
        with pytest.raises(InvalidRequestError, match="is not in the vocabulary"):
            llm.generate("hello", **GREEDY, **settings)
    assert llm.generate("hello", **GREEDY)[0].tokens == expected


def test_a_top_k_of_all_tokens_and_more(load_tiny):
    llm = load_tiny()
    settings = {"max_new_tokens": 5, "seed": 3, "top_p": 0.9, "ignore_eos": True}
    assert llm.generate("hello", **settings, top_k=10**30)[0].tokens == llm.generate("hello", **settings)[0].tokens


@pytest.mark.parametrize("linear", ["torch", "auto"])
def test_a_pipeline_that_nobody_has_is_gone_at_once(tiny_gguf, linear):
    """With its weights and its cache, before the collector comes by."""
    gc.disable()
    try:
        settings = {"device": "cpu", "dtype": "float32", "page_size": 8, "kv_cache_memory": "4MiB", "linear": linear}
        llm = registry.load(tiny_gguf, **settings)
        llm.generate("hello", **GREEDY)
        parts = [llm.model, llm.kv_managers[0], *llm.model.module.modules()]
        left = [weakref.ref(part) for part in parts]
        del llm, parts
        assert [part() for part in left if part() is not None] == []
    finally:
        gc.enable()


def test_tasks_run_steps_in_one_thread_and_tokenize_in_others(load_tiny):
    llm = load_tiny()
    of_steps, of_prompts = set(), set()
    execute, new_context = llm.model.execute, llm.tokenizer.new_context

    def noting(threads, function):
        return lambda *arguments: (threads.add(threading.get_ident()), function(*arguments))[1]

    llm.model.execute = noting(of_steps, execute)
    llm.tokenizer.new_context = noting(of_prompts, new_context)

    async def one(prompt):
        return [output async for outputs in llm.generate_async(prompt, **GREEDY) for output in outputs]

    async def several():
        await asyncio.gather(*(one(prompt) for prompt in ("hello", "he", "help", "h")))

    asyncio.run(several())
    assert len(of_steps) == 1
    assert not of_prompts & {*of_steps, threading.get_ident()}


def test_pages_held_outside_the_scheduler_are_named(load_tiny):
    llm = load_tiny(kv_cache_memory=cache_memory(8), max_length=60)
    context = llm.tokenizer.new_context(
        TextGenerationRequest(prompt=[1] * 50, sampling_params=SamplingParams(**{**GREEDY, "max_new_tokens": 4}))
    )
    context.set_chunk(50)
    llm.execute(TextGenerationInputs([{context.request_id: context}]))
    with pytest.raises(InsufficientPagesError, match="outside the scheduler"):
        llm.generate(TextGenerationRequest(prompt=[2] * 50), **{**GREEDY, "max_new_tokens": 4})
    llm.release(context.request_id)
    assert len(llm.generate(TextGenerationRequest(prompt=[2] * 50), **{**GREEDY, "max_new_tokens": 4})[0].tokens) == 4


def test_it_is_what_the_interfaces_say(load_tiny):
    llm = load_tiny()
    assert isinstance(llm, GenerateMixin)
    assert get_paged_manager(llm) is llm.kv_managers[0]
    assert isinstance(llm.pipeline_config, PipelineConfig)
    assert isinstance(llm.tokenizer.new_context(TextGenerationRequest(prompt="a")), TextContext)
