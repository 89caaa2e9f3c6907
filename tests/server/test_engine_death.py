"""The engine's process dies, or cannot load: requests end with an error at once, and the server says what is so."""

import json
import os
import re
import signal
import threading

import pytest
from server.running_server import RunningServer
from server.test_disconnects import LONG, until

from pipezoo.serve.errors import EngineLostError
from pipezoo_core.errors import InvalidSettingError, ModelNotFoundError

pytestmark = pytest.mark.slow


def kill(server):
    os.kill(server.engine.pid, signal.SIGKILL)


def stream_in_thread(server):
    """Reads a stream, which has begun; returns its lines and the thread."""
    lines = []

    def read():
        with server.client.stream("POST", "/v1/completions", json=LONG | {"prompt": ["a"] * 30}) as response:
            lines.extend(line for line in response.iter_lines() if line)

    thread = threading.Thread(target=read)
    thread.start()
    until(lambda: lines)
    return lines, thread


def test_another_engine_takes_its_place(tiny_gguf):
    server = RunningServer(tiny_gguf).wait()
    try:
        asked = {"prompt": "he", "max_tokens": 5, "temperature": 0}
        before = server.client.post("/v1/completions", json=asked).json()["choices"]
        lines, thread = stream_in_thread(server)
        wait = server.await_restart()
        kill(server)
        thread.join(10)
        assert not thread.is_alive()
        assert json.loads(lines[-2][6:])["error"]["code"] == "engine_lost"
        assert lines[-1] == "data: [DONE]"
        until(lambda: server.client.get("/health").json() == {"status": "loading"})
        assert server.client.get("/ready").status_code == 503
        refused = server.client.post("/v1/completions", json=asked)
        assert refused.status_code == 503
        assert "retry-after" in refused.headers
        wait()
        assert server.client.get("/ready").status_code == 200
        assert server.client.post("/v1/completions", json=asked).json()["choices"] == before
        assert server.engine.num_deaths == 1
        metrics = server.client.get("/metrics").text
        ended = dict(re.findall(r'request_success_total\{.*finished_reason="(\w+)".*\} (.*)', metrics))
        assert float(ended["error"]) > 0
        assert float(ended["abort"]) == 0
        server.assert_all_free()
    finally:
        server.close()
    assert server.error is None


def test_the_server_ends_where_it_is_to(tiny_gguf):
    server = RunningServer(tiny_gguf, on_engine_death="exit").wait()
    lines, thread = stream_in_thread(server)
    kill(server)
    thread.join(10)
    assert json.loads(lines[-2][6:])["error"]["code"] == "engine_lost"
    server.join(20)
    assert isinstance(server.error, EngineLostError)
    server.close()


def test_a_model_that_cannot_be_loaded(tiny_gguf):
    server = RunningServer(tiny_gguf, {"kv_cache_memory": "1KiB"})
    with pytest.raises(Exception, match="KV cache") as caught:
        server.wait()
    assert not isinstance(caught.value, EngineLostError), "it is what the load failed of"
    server.close()


def test_what_is_wrong_before_anything_is_loaded(tiny_gguf):
    with pytest.raises(InvalidSettingError, match="Did you mean 'max_length'"):
        RunningServer(tiny_gguf, {"max_lenght": 3}).wait()
    with pytest.raises(ModelNotFoundError):
        RunningServer("/nowhere/at/all").wait()
