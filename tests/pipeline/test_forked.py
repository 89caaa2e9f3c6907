"""A forked child of the process that loaded a model says at once that it cannot use it, whatever it calls."""

import asyncio
import os
import select
import signal
import subprocess
import sys
import threading

import pytest
from lora.peft_adapters import save_adapter

from pipezoo_core.context import TextGenerationInputs
from pipezoo_core.errors import ForkedProcessError
from pipezoo_core.request import TextGenerationRequest
from pipezoo_core.sampling_params import SamplingParams

PROMPT = [1, 2, 3]
GREEDY = {"max_new_tokens": 8, "temperature": 0.0, "ignore_eos": True}


def in_child(act):
    """Returns the name of the error that `act` raises in a forked child; an empty text where it raises none."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            act()
        except BaseException as error:
            os.write(writing, type(error).__name__.encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        ends = bool(select.select([pipe], [], [], 60)[0])
        if not ends:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return pipe.read() if ends else "it hangs"


@pytest.fixture(scope="module")
def adapter(tiny_reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(tiny_reference, folder, r=2)
    return folder


async def all_of(outputs):
    return [output async for output in outputs]


def execute(llm):
    context = llm.tokenizer.new_context(TextGenerationRequest(prompt=PROMPT))
    llm.execute(TextGenerationInputs([{context.request_id: context}]))


def constrained(llm):
    llm.tokenizer.new_context(TextGenerationRequest(prompt=PROMPT, sampling_params=SamplingParams(regex="[0-9]+")))


CALLS = {
    "generate": lambda llm: llm.generate(TextGenerationRequest(prompt=PROMPT), **GREEDY),
    "a regex": lambda llm: llm.generate("hello", regex="[0-9]+", **GREEDY),
    "generate_async": lambda llm: asyncio.run(all_of(llm.generate_async("hello", **GREEDY))),
    "stream": lambda llm: list(llm.stream("hello", **GREEDY)),
    "chat": lambda llm: llm.chat([{"role": "user", "content": "hello"}], **GREEDY),
    "execute": execute,
    "cancel": lambda llm: llm.cancel("nobody"),
    "release": lambda llm: llm.release("nobody"),
    "load_adapter": lambda llm: llm.model.lora_manager.load_adapter("nowhere"),
    "unload_adapter": lambda llm: llm.model.lora_manager.unload_adapter("known"),
    "a grammar of the tokenizer's": constrained,
}


@pytest.fixture
def used(load_tiny, adapter):
    """A model that has done everything that makes threads and takes locks."""
    llm = load_tiny(lora_paths=[f"known={adapter}"], data_parallel_degree=2)
    llm.generate([TextGenerationRequest(prompt=PROMPT, lora=name) for name in ("known", None)], **GREEDY)
    llm.generate("hello", regex="[0-9]+", **GREEDY)
    asyncio.run(all_of(llm.generate_async("hello", **GREEDY)))
    return llm


@pytest.mark.slow
def test_every_call_fails_at_once_and_the_parent_goes_on(used):
    before = used.generate("hello", **GREEDY)[0].tokens
    found = {name: in_child(lambda call=call: call(used)) for name, call in CALLS.items()}
    assert found == dict.fromkeys(CALLS, ForkedProcessError.__name__)
    assert used.generate("hello", **GREEDY)[0].tokens == before


@pytest.mark.slow
def test_while_other_threads_hold_the_locks(used):
    locks = [used._engine._lock, used.model.lora_manager._lock, used.tokenizer._grammars._lock]
    held, done = threading.Event(), threading.Event()

    def hold():
        with locks[0], locks[1], locks[2]:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        found = {name: in_child(lambda call=call: call(used)) for name, call in CALLS.items()}
    finally:
        done.set()
        thread.join()
    assert found == dict.fromkeys(CALLS, ForkedProcessError.__name__)


def test_an_answer_that_was_begun_before(load_tiny):
    llm = load_tiny()
    pieces, loop = llm.stream("hello", **GREEDY), asyncio.new_event_loop()
    next(pieces)
    outputs = llm.generate_async("hello", **GREEDY)
    loop.run_until_complete(anext(outputs))
    assert in_child(lambda: list(pieces)) == ForkedProcessError.__name__
    assert in_child(pieces.close) == ""
    assert in_child(lambda: asyncio.new_event_loop().run_until_complete(anext(outputs))) == ForkedProcessError.__name__
    assert list(pieces)
    loop.run_until_complete(outputs.aclose())
    loop.close()


LOAD_IN_CHILD = """
import os, sys
import torch
from pipezoo import registry
from pipezoo_core.errors import ForkedProcessError
settings = {"dtype": "float32", "page_size": 8, "kv_cache_memory": "4MiB", "device": "cpu"}
torch.set_num_threads(2)
exec(sys.argv[2])
if os.fork() == 0:
    try:
        for _ in range(2):
            llm = registry.load(sys.argv[1], **settings)
            torch.zeros(1 << 20).add_(1)
        print(len(llm.generate("hello", max_new_tokens=3, temperature=0.0, ignore_eos=True)[0].tokens), "tokens")
    except ForkedProcessError as error:
        print(error)
    sys.exit()
os.wait()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "found"),
    [
        pytest.param("", "3 tokens", id="a parent that did not compute"),
        pytest.param("torch.zeros(1 << 20).add_(1)", "spawn", id="a parent that computed"),
        pytest.param("torch.zeros(1 << 20).add_(1); torch.set_num_threads(1)", "3 tokens", id="with one thread"),
        pytest.param("llm = registry.load(sys.argv[1], **settings); torch.set_num_threads(1)", "3 tokens", id="loaded"),
    ],
)
def test_a_load_in_a_forked_child(before, found, tiny_gguf):
    done = subprocess.run(
        [sys.executable, "-c", LOAD_IN_CHILD, str(tiny_gguf), before], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert found in done.stdout
