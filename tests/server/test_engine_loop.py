"""The engine's loop, by itself: what it prepares, and when it cannot go on."""

from queue import SimpleQueue

import pytest
import torch

from pipezoo.serve.engine import process
from pipezoo.serve.engine.loop import EngineLoop
from pipezoo.serve.engine.messages import Cancel, Generate, Inspect, decode_to_server
from pipezoo_core.errors import RankLostError
from pipezoo_core.request import TextGenerationOutput


class Channel:
    """Keeps what is sent."""

    def __init__(self):
        self.sent = []

    def send(self, data):
        self.sent.append(decode_to_server(data))


class Threads:
    """Does what it is asked for only when it is told to."""

    def __init__(self):
        self.works = []

    def submit(self, work):
        self.works.append(work)


@pytest.fixture
def loop(llm):
    loop = EngineLoop(llm, Channel(), SimpleQueue())
    loop._threads = Threads()
    return loop


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_a_grammar_that_nobody_waits_for_is_not_compiled(loop, monkeypatch, is_cancelled):
    prepared = []
    monkeypatch.setattr(loop._driver, "prepare", lambda request, _: prepared.append(request.request_id))
    loop._take(Generate("a", [1, 2], {"regex": "a+"}, None, 0.0))
    if is_cancelled:
        loop._take(Cancel("a"))
    for work in loop._threads.works:
        work()
    assert prepared == ([] if is_cancelled else ["a"])
    assert loop._inbox.empty() == is_cancelled


def test_the_answer_to_an_inspection_has_the_counts_of_its_moment(loop):
    loop._take(Generate("a", [1, 2, 3], {}, None, 0.0))
    loop._driver.step()
    loop._take(Inspect(7))
    loop._take(Cancel("a"))
    loop._take(Inspect(8))
    during, after = loop._channel.sent
    assert (during.number, during.error, during.counts.num_running) == (7, None, 1)
    assert (after.number, after.error, after.counts.num_running) == (8, None, 0)
    assert after.counts.num_free_pages == after.counts.num_pages > during.counts.num_free_pages


@pytest.mark.parametrize("error", [RankLostError("rank 1 is gone"), torch.AcceleratorError("an illegal access")])
def test_an_engine_that_can_compute_nothing_more_ends_after_it_has_said_so(loop, monkeypatch, error):
    steps = iter(
        [[TextGenerationOutput.failed("a", ValueError("of this one"))], [], [TextGenerationOutput.failed("b", error)]]
    )
    monkeypatch.setattr(loop._driver, "step", lambda: next(steps))
    for request_id in "abc":
        loop._inbox.put(Cancel(request_id))  # something to look at, for each step
    monkeypatch.setattr(loop, "_messages", lambda: iter([loop._inbox.get_nowait()]))
    with pytest.raises(type(error)):
        loop.run()
    assert [output.request_id for each in loop._channel.sent for output in each.outputs] == ["a", "b"]


def test_an_error_ends_the_process_whatever_its_threads_do(monkeypatch, capfd):
    ended = []
    monkeypatch.setattr(process, "_serve", lambda: 1 // 0)
    monkeypatch.setattr(process.os, "_exit", ended.append)
    process.main()
    assert ended == [1]
    assert "ZeroDivisionError" in capfd.readouterr().err
