"""`pipezoo serve` as a user types it: it begins, says what it does, and ends as it is told."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from server.test_disconnects import LONG, until
from typer.testing import CliRunner

from pipezoo.cli.main import app
from pipezoo.serve.run import bound, listen
from pipezoo.serve.settings import ServeSettings
from pipezoo_core.errors import InvalidSettingError

SMALL = ["--dtype", "float32", "--device", "cpu", "--kv-cache-memory", "4MiB", "--port", "0"]


class Command:
    """The command in a process of its own."""

    def __init__(self, *arguments):
        command = [sys.executable, "-m", "pipezoo", "serve", *map(str, arguments)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.lines = []
        self.thread = threading.Thread(target=lambda: self.lines.extend(self.process.stderr))
        self.thread.start()

    def await_address(self):
        until(lambda: self.process.poll() is not None or re.search("serving at", self.text), seconds=300)
        return re.search(r"serving at (http://\S+)", self.text)[1]

    @property
    def text(self):
        return "".join(self.lines)

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.join()

    def join(self):
        status = self.process.wait(60)
        self.thread.join()
        self.process.stderr.close()
        return status


@pytest.mark.slow
def test_it_serves_and_drains(tiny_gguf, tmp_path):
    """Requests that run are answered whole, new ones find nobody, and the status is 0."""
    keys = tmp_path / "keys"
    keys.write_text("a-key-for-tests\n")
    command = Command(tiny_gguf, *SMALL, "--api-key-file", keys, "--host", "0.0.0.0", "--served-model-name", "tiny")
    url = command.await_address().replace("0.0.0.0", "127.0.0.1")
    assert "warning" not in command.text
    client = httpx.Client(base_url=url, headers={"Authorization": "Bearer a-key-for-tests"}, timeout=60)
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
    assert httpx.get(f"{url}/v1/models").status_code == 401
    answers = []
    bodies = [{**LONG, "prompt": ["a"] * 20, "stream": is_stream} for is_stream in (True, False)]
    threads = [
        threading.Thread(target=lambda body=body: answers.append(client.post("/v1/completions", json=body)))
        for body in bodies
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    assert command.end(signal.SIGINT) == 0
    for thread in threads:
        thread.join()
    for answer in answers:
        assert answer.status_code == 200
        assert "error" not in answer.text
    with pytest.raises(httpx.TransportError):
        client.get("/health")
    client.close()


@pytest.mark.slow
def test_it_cancels_what_takes_too_long(tiny_gguf):
    command = Command(tiny_gguf, *SMALL, "--shutdown-timeout", "0", "--host", "0.0.0.0")
    url = command.await_address().replace("0.0.0.0", "127.0.0.1")
    assert "warning: everybody who reaches 0.0.0.0 can use this server" in command.text
    with httpx.stream("POST", f"{url}/v1/completions", json={**LONG, "prompt": ["a"] * 200}, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        command.process.send_signal(signal.SIGTERM)
        *_, error, end = [line for line in lines if line]
    assert json.loads(error[6:])["error"]["code"] == "server_closing"
    assert end == "data: [DONE]"
    assert command.join() == 0


@pytest.mark.slow
def test_a_load_that_fails_says_why(tiny_gguf):
    command = Command(tiny_gguf, *SMALL[:-4], "--kv-cache-memory", "1KiB", "--port", "0")
    assert command.join() == 1
    assert "error: " in command.text
    assert "Traceback" not in command.text


@pytest.mark.slow
def test_no_engine_outlives_its_server(tiny_gguf):
    command = Command(tiny_gguf, *SMALL)
    command.await_address()
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(command.process.pid)], capture_output=True, text=True)
    pids = [int(pid) for pid in children.stdout.split()]
    assert pids
    command.end(signal.SIGKILL)

    def is_gone(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except FileNotFoundError:
            return True

    until(lambda: all(map(is_gone, pids)))


def test_an_address_is_one_servers_and_nobody_connects_before_it_answers():
    """A model may have to be found first, and downloaded."""
    with bound(ServeSettings(port=0)) as first:
        same = ServeSettings(port=first.getsockname()[1])
        with bound(same) as second:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((same.host, same.port))
            listen(first, same)
            socket.create_connection((same.host, same.port)).close()
            with pytest.raises(InvalidSettingError, match="cannot listen at this address"):
                listen(second, same)
        with pytest.raises(InvalidSettingError, match="cannot listen at this address"):
            bound(same)


def test_bad_options():
    def run(*arguments):
        return CliRunner().invoke(app, ["serve", "model", *arguments], env={"NO_COLOR": "1", "COLUMNS": "200"})

    assert "setting 'port' is not valid" in run("--port", "99999").stderr
    assert "'on_engine_death'" in run("--on-engine-death", "panic").stderr
    assert "cannot be read" in run("--api-key-file", "/nowhere/keys").stderr
    assert "cannot listen at this address" in run("--host", "203.0.113.7", "--port", "1").stderr
    assert all(run(*each).exit_code == 1 for each in (["--port", "99999"], ["--max-queue", "-1"]))
