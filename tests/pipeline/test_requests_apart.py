"""One request fails, waits, is cancelled or left: the others neither notice nor wait for it."""

import asyncio
import gc
import signal
import threading
import weakref
from functools import partial

import numpy as np
import pytest

from pipezoo_core.context import TextGenerationInputs
from pipezoo_core.errors import (
    AdapterNotFoundError,
    EmptyPromptError,
    InvalidGrammarError,
    InvalidRequestError,
    PromptTooLongError,
)
from pipezoo_core.request import GenerationStatus, TextGenerationRequest
from pipezoo_core.sampling_params import SamplingParams

GREEDY = {"temperature": 0.0, "max_new_tokens": 12, "ignore_eos": True}
LONG = {**GREEDY, "max_new_tokens": 200}
FAILING = {
    "empty": ("", EmptyPromptError),
    "too long": ("h" * 300, PromptTooLongError),
    "far too long": ("h" * 10**6, PromptTooLongError),
    "too many tokens": (TextGenerationRequest(prompt=[1] * 10**6), PromptTooLongError),
    "neither prompt nor messages": (TextGenerationRequest(), InvalidRequestError),
    "unknown token": (TextGenerationRequest(prompt=[2**63]), InvalidRequestError),
    "no message": ([{"role": 7}], InvalidRequestError),
    "no adapter": (TextGenerationRequest(prompt="he", lora="nobody" * 10**5), AdapterNotFoundError),
}


OF_NO_KIND = [5, True, 1.5, 10**5000, {1, 2}, {"a": 1}, b"x", iter("ab"), object(), lambda: 1, np.int64(5), np.array(5)]


def test_requests_of_no_kind(load_tiny):
    llm = load_tiny()

    def tries(value):
        yield lambda: llm.generate(value, **GREEDY)
        yield lambda: llm.generate([value], **GREEDY)
        yield lambda: list(llm.stream(value, **GREEDY))
        yield lambda: llm.chat(value, **GREEDY)
        yield lambda: llm.generate("he", lora=value)
        for name in ("prompt", "messages", "sampling_params", "lora", "request_id"):
            yield partial(TextGenerationRequest, **{name: value})
        yield lambda: llm.cancel(value)
        yield lambda: llm.release(value)

    for value in OF_NO_KIND:
        for attempt in tries(value):
            with pytest.raises(InvalidRequestError) as raised:
                attempt()
            assert len(str(raised.value).encode()) < 1000
    assert llm.generate("hello", **GREEDY)[0].error is None


@pytest.mark.parametrize("way", ["cancel", "release"])
def test_what_is_no_id_is_refused_beside_several_answers(load_tiny, way):
    llm = load_tiny()
    several = llm.generate_async("hello", n=2, temperature=1.0)
    for value in (5, np.array([5, 6])):
        with pytest.raises(InvalidRequestError, match="the id of a request is text"):
            getattr(llm, way)(value)
    del several


def test_token_ids_come_in_any_list(load_tiny):
    llm = load_tiny()
    expected = llm.generate(TextGenerationRequest(prompt=[5, 40, 77]), **GREEDY)[0].tokens
    for prompt in ((5, 40, 77), np.array([5, 40, 77]), np.array([5, 40, 77], dtype=np.uint16)):
        assert llm.generate(TextGenerationRequest(prompt=prompt), **GREEDY)[0].tokens == expected


@pytest.mark.matrix
@pytest.mark.parametrize("name", FAILING)
def test_a_prompt_that_fails_has_its_error_and_the_others_have_answers(load_tiny, name):
    llm = load_tiny()
    prompt, error = FAILING[name]
    expected = [llm.generate(one, **GREEDY)[0].tokens for one in ("hello", "he")]
    first, failed, last = llm.generate(["hello", prompt, "he"], **GREEDY)
    assert [first.tokens, last.tokens] == expected
    assert first.error is last.error is None
    assert isinstance(failed.error, error)
    assert len(str(failed.error).encode()) < 1000
    assert (failed.final_status, failed.tokens, failed.is_done) == (GenerationStatus.ERROR, [], True)
    with pytest.raises(error):
        llm.generate(prompt, **GREEDY)
    with pytest.raises(error):
        list(llm.stream(prompt, **GREEDY))

    async def collect(prompts):
        return [output async for outputs in llm.generate_async(prompts, **GREEDY) for output in outputs]

    with pytest.raises(error):
        asyncio.run(collect(prompt))
    outputs = asyncio.run(collect(["hello", prompt]))
    assert [type(output.error) for output in outputs if output.error] == [error]
    assert [token for output in outputs for token in output.tokens] == expected[0]


def test_a_bad_grammar_of_a_batch(load_tiny):
    llm = load_tiny()
    outputs = llm.generate("hello", **GREEDY), llm.generate(["hello"] * 2, **GREEDY, regex="(" * 9)
    assert outputs[0][0].error is None
    assert [type(output.error) for output in outputs[1]] == [InvalidGrammarError] * 2


def test_a_stream_goes_on_beside_one_that_waits_for_its_place(load_tiny):
    """A batch of one: every step is the first stream's, and each of its tokens comes before the next is computed."""
    llm = load_tiny(max_batch_size=1)
    steps, lags = [0], []
    execute = llm.model.execute

    def counting(inputs):
        steps[0] += 1
        return execute(inputs)

    llm.model.execute = counting

    async def first():
        number = 0
        async for outputs in llm.generate_async("hello", **{**GREEDY, "max_new_tokens": 60}):
            number += sum(len(output.tokens) for output in outputs)
            lags.append(steps[0] - number)

    async def waiting(prompt):
        return [output async for outputs in llm.generate_async(prompt, **GREEDY) for output in outputs]

    async def main():
        stream = asyncio.create_task(first())
        async with asyncio.timeout(60):
            while not steps[0]:
                await asyncio.sleep(0)
        others = [asyncio.create_task(waiting(prompt)) for prompt in ("he", "help", "h")]
        await stream
        return await asyncio.gather(*others)

    answers = asyncio.run(main())
    assert max(lags) <= 1
    assert all(sum(len(output.tokens) for output in answer) == 12 for answer in answers)


def test_a_prompt_that_is_being_tokenized_holds_up_nobody(load_tiny):
    llm = load_tiny()
    new_context, has_begun, may_end = llm.tokenizer.new_context, threading.Event(), threading.Event()

    def slow(request):
        if request.prompt == "slow":
            has_begun.set()
            assert may_end.wait(60)
            request = TextGenerationRequest(prompt="hello", sampling_params=request.sampling_params)
        return new_context(request)

    llm.tokenizer.new_context = slow

    async def one(prompt):
        return [output async for outputs in llm.generate_async(prompt, **GREEDY) for output in outputs]

    async def main():
        task = asyncio.create_task(one("slow"))
        assert await asyncio.to_thread(has_begun.wait, 60)
        assert len(await one("hello")) == 12
        may_end.set()
        return await task

    assert len(asyncio.run(main())) == 12


@pytest.mark.parametrize("way", ["cancel", "timeout", "aclose", "abandon"])
def test_a_task_that_ends_early_gives_everything_back(load_tiny, way):
    llm = load_tiny(max_batch_size=2)
    complaints = []

    async def run(seen):
        async for _ in llm.generate_async("hello", **LONG):
            seen.set()

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        if way in ("cancel", "timeout"):
            seen = [asyncio.Event() for _ in range(4)]  # two run and two wait
            tasks = [asyncio.create_task(run(event)) for event in seen]
            await seen[0].wait()
            if way == "timeout":
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0):
                        await asyncio.gather(*tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert llm.scheduler.num_running == llm.scheduler.num_waiting == 0
            return
        stream = llm.generate_async("hello", **LONG)
        await anext(stream)
        if way == "aclose":
            await stream.aclose()
            assert llm.kv_managers[0].num_free_pages == llm.kv_managers[0].total_num_pages

    asyncio.run(main())
    gc.collect()
    assert len(llm.generate("hello", **GREEDY)[0].tokens) == 12
    assert complaints == []


def test_errors_that_nobody_fetches_leave_no_complaint(load_tiny, caplog):
    llm = load_tiny()
    execute = llm.model.execute
    complaints = []

    def failing(inputs):
        raise RuntimeError("out of luck")

    async def run():
        async for _ in llm.generate_async("hello", **LONG):
            pass

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        llm.model.execute = failing
        tasks = [asyncio.create_task(run()) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(error) for error in found} == {RuntimeError, asyncio.CancelledError}

    asyncio.run(main())
    gc.collect()
    llm.model.execute = execute
    assert complaints == []
    assert caplog.records == []


@pytest.mark.parametrize("change", ["cancel", "release"])
@pytest.mark.parametrize("way", ["handler", "finalizer", "thread"])
def test_a_request_that_is_ended_in_the_middle_of_a_step(load_tiny, greedy, change, way):
    """By the thread that is inside the step, or one that the step waits for: it takes effect when the step is done."""
    llm = load_tiny()
    execute, running, ended = llm.model.execute, TextGenerationRequest(prompt="he"), []
    stream = llm.stream(running, **LONG)
    next(stream)

    def end(*_):
        ended.append(True)
        getattr(llm, change)(running.request_id)

    class Thing:
        pass

    def ending(inputs):
        if not ended and way == "handler":
            signal.raise_signal(signal.SIGUSR1)
        elif not ended and way == "finalizer":
            weakref.finalize(Thing(), end)
        elif not ended:
            thread = threading.Thread(target=end)
            thread.start()
            thread.join(60)
            assert not thread.is_alive()
        llm.kv_managers[0].check_integrity()
        return execute(inputs)

    before = signal.signal(signal.SIGUSR1, end)
    try:
        llm.model.execute = ending
        prompt = list(range(1, 20))
        assert llm.generate(TextGenerationRequest(prompt=prompt), **GREEDY)[0].tokens == greedy(prompt, 12)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert ended
    assert llm.scheduler.num_running == 0
    assert len("".join(stream)) < 200


async def all_of(steps):
    return [output async for outputs in steps for output in outputs]


IN_A_STEP = {
    "generate": lambda llm: llm.generate("he", **GREEDY),
    "generate_async": lambda llm: asyncio.run(all_of(llm.generate_async("he", **GREEDY))),
    "stream": lambda llm: list(llm.stream("he", **GREEDY)),
    "execute": lambda llm: llm.execute(TextGenerationInputs([])),
    "unload_adapter": lambda llm: llm.unload_adapter("nobody"),
    "close": lambda llm: llm.close(),
}


@pytest.mark.matrix
@pytest.mark.parametrize("by_task", [False, True], ids=["thread", "task"])
@pytest.mark.parametrize("data_parallel_degree", [1, 2])
@pytest.mark.parametrize("way", IN_A_STEP)
def test_what_would_wait_for_the_step_that_it_is_in_the_middle_of_is_refused(
    load_tiny, tiny_folder, way, data_parallel_degree, by_task
):
    llm = load_tiny(tiny_folder, max_num_loras=1, data_parallel_degree=data_parallel_degree)
    threads, answers = set(), []

    def process(tokens, logits):
        with pytest.raises(InvalidRequestError, match="middle of a step"):
            IN_A_STEP[way](llm)
        threads.add(threading.get_ident())
        return logits

    def run():
        settings = {**GREEDY, "logits_processors": [process]}
        if by_task:
            answers.extend(asyncio.run(all_of(llm.generate_async(["hello", "help"], **settings))))
        else:
            answers.extend(llm.generate(["hello", "help"], **settings))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert [output.error for output in answers if output.error] == []
    assert sum(len(output.tokens) for output in answers) == 24
    assert len(threads) == data_parallel_degree


@pytest.mark.parametrize("data_parallel_degree", [1, 2])
def test_an_id_that_execute_has_is_refused_to_others_and_the_other_way_round(load_tiny, greedy, data_parallel_degree):
    llm = load_tiny(data_parallel_degree=data_parallel_degree)
    prompt = list(range(1, 20))
    request = TextGenerationRequest(prompt=prompt, sampling_params=SamplingParams(**GREEDY))
    context = llm.tokenizer.new_context(request)
    batches = [{}] * (data_parallel_degree - 1) + [{request.request_id: context}]  # the last replica
    llm.execute(TextGenerationInputs(batches))
    other, refused = llm.generate(["hello", request], **GREEDY)
    assert len(other.tokens) == 12
    assert isinstance(refused.error, InvalidRequestError)
    with pytest.raises(InvalidRequestError, match="Release it first"):
        llm.generate(request)
    context.set_chunk(1)
    llm.execute(TextGenerationInputs(batches, num_steps=11))
    assert context.generated_tokens == greedy(prompt, 12)
    llm.release(request.request_id)

    stream = llm.stream(request)
    pieces = [next(stream)]
    with pytest.raises(InvalidRequestError, match="running already"):
        llm.execute(TextGenerationInputs([{request.request_id: llm.tokenizer.new_context(request)}]))
    pieces += stream
    assert "".join(pieces) == llm.tokenizer.decode(greedy(prompt, 12))


def test_a_change_that_fails_keeps_no_other_from_being_made(load_tiny):
    llm = load_tiny()

    def failing():
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        llm._engine._change(failing)
    assert len(llm.generate("hello", **GREEDY)[0].tokens) == 12
