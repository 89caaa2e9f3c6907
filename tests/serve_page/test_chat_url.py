"""`pipezoo chat --url`: the chat of the command line with a server that runs elsewhere."""

import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from cli.terminals import CTRL_C, terminal
from typer.testing import CliRunner

from pipezoo.cli.main import app
from pipezoo.cli.server_connection import ServerConnection
from pipezoo_core.errors import InvalidSettingError


@pytest.fixture
def chat(fake, monkeypatch):
    """Runs the command against the fake server."""
    monkeypatch.delenv("PIPEZOO_API_KEY", raising=False)

    def run(*lines, arguments=(), status=0, url=None):
        command = ["chat", "--url", fake.url if url is None else url, *arguments]
        result = CliRunner().invoke(app, command, input="".join(f"{line}\n" for line in lines))
        assert result.exit_code == status, result.output
        assert "Traceback" not in result.output
        return result

    return run


def test_only_answers_come_out_and_each_knows_those_before(chat, fake):
    result = chat("hello", "hi", arguments=["--system", "be brief"])
    assert result.stdout == "You said: hello \nYou said: hi \n"
    assert result.stderr == ""
    assert fake.requests[1] == {
        "model": "tiny-llama",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "You said: hello "},
            {"role": "user", "content": "hi"},
        ],
    }


def test_commands_are_the_same(chat, fake, tmp_path):
    path = tmp_path / "chat.json"
    chat("/system be brief", "hello", f"/save {path}", "/reset", "hi")
    assert [message["role"] for message in json.loads(path.read_text())["messages"]] == ["system", "user", "assistant"]
    assert [message["content"] for message in fake.requests[1]["messages"]] == ["be brief", "hi"]
    chat(f"/load {path}", "on")
    assert [message["content"] for message in fake.requests[2]["messages"]] == [
        "be brief", "hello", "You said: hello ", "on",
    ]  # fmt: skip


def test_settings_go_by_the_names_of_the_server(chat, fake):
    lines = [
        "/set min_new_tokens 2",
        '/set stop ["a", "b"]',
        '/set logit_bias {"3": 1.5}',
        "/set regex [0-9]+",
        "/set seed none",
    ]
    result = chat(*lines, "/set", "hello", arguments=["--max-new-tokens", "5", "--temperature", "0"])
    sent = {
        name: value
        for name, value in fake.requests[0].items()
        if name not in ("model", "stream", "stream_options", "messages")
    }
    assert sent == {
        "max_completion_tokens": 5,
        "temperature": 0.0,
        "min_tokens": 2,
        "stop": ["a", "b"],
        "logit_bias": {"3": 1.5},
        "structured_outputs": {"regex": "[0-9]+"},
    }
    shown = result.stderr.splitlines()[len(lines) :]
    assert shown[-1] == "  The others are as the server has them."
    assert {line.split(" = ")[0].strip() for line in shown[:-1]} == {
        "max_new_tokens", "temperature", "min_new_tokens", "stop", "logit_bias", "regex", "seed",
    }  # fmt: skip


def test_models_and_adapters_by_name(chat, fake):
    chat("hello", arguments=["pirate"])
    assert fake.requests[0]["model"] == "pirate"
    said = chat(arguments=["nobody"], status=1).stderr
    assert "the server has no model 'nobody' (allowed: tiny-llama, tiny-qwen, pirate)" in said


def test_verbose_says_how_fast(chat):
    about = chat("slow and five words", arguments=["--verbose"]).stderr
    assert about.startswith("6 tokens, the first after ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("refuse", "'temperature' is not valid (found: 9; allowed: 0 to 2)"),
        ("fail", "the server has failed: the engine has died"),
        ("break", "went away in the middle of an answer"),
        ("no json", "the server does not answer: HTTP status 502"),
        ("/set log_probabilities 2", "setting 'log_probabilities' is not for chats with a server"),
        ("/set temperature -1", "setting 'temperature' is not valid"),
    ],
)
def test_what_fails_is_said_and_the_chat_goes_on(chat, fake, text, said):
    after = ["/set log_probabilities none"] if "log_prob" in text else []
    result = chat(text, *(["hello"] if after else []), *after, "hello", status=1)
    assert said in result.stderr
    assert result.stdout.endswith("You said: hello \n")
    assert [message["content"] for message in fake.requests[-1]["messages"]] == ["hello"]


def test_without_its_key_a_server_refuses(chat, fake, monkeypatch):
    fake.key = "sesame"
    assert "Put its API key into PIPEZOO_API_KEY." in chat("hello", status=1).stderr
    monkeypatch.setenv("PIPEZOO_API_KEY", "wrong")
    said = chat("hello", status=1).stderr
    assert "the server refuses: the API key is missing or not one of the server's. Put" in said
    monkeypatch.setenv("PIPEZOO_API_KEY", "sesame")
    assert chat("hello").stdout == "You said: hello \n"
    monkeypatch.setenv("PIPEZOO_API_KEY", "two\nlines")
    assert "cannot be sent" in chat("hello", status=1).stderr


def test_an_address_with_no_models_is_named(chat, fake):
    assert f"{fake.url}/nowhere has no /v1/models" in chat("hello", url=f"{fake.url}/nowhere", status=1).stderr


@contextmanager
def answering(*parts, status="200 OK"):
    """A server that sends the same bytes to everybody, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(f"HTTP/1.1 {status}\r\nConnection: close\r\n\r\n".encode() + b"".join(parts))

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"<html>", "200 OK", "what the server says cannot be understood"),
        (b"[" * 100_000, "200 OK", "what the server says cannot be understood"),
        (b"[]", "200 OK", "lists no models"),
        (b'{"data": [{"id": 1}]}', "200 OK", "lists no models"),
        (b'{"data": []}', "200 OK", "lists no models"),
        (b'{"error": {"message": "loading \\u001b[2J"}}', "503 Busy", "the server does not answer: loading \\x1b[2J"),
        (b'{"error": "gone"}', "404 Not Found", "has no /v1/models, as servers of models do (found: gone)"),
        (b"", "405 Method Not Allowed", "has no /v1/models, as servers of models do (found: HTTP status 405)"),
        (b'{"detail": 1}', "500 Oh", "HTTP status 500"),
        (b"moved", "307 Moved", "HTTP status 307"),
    ],
)
def test_what_is_no_server_of_models(chat, body, status, said):
    with answering(body, status=status) as url:
        result = chat("hello", url=url, status=1)
    assert said in result.stderr
    assert len(result.stderr.encode()) < 1100


@pytest.mark.parametrize("status", [400, 413, 415, 422, 429])
def test_only_of_an_address_that_is_none_it_is_said_so(chat, status):
    with answering(b'{"error": {"message": "the Host header is bad"}}', status=f"{status} No") as url:
        said = chat("hello", url=url, status=1).stderr
    assert "the Host header is bad" in said
    assert "/v1/models" not in said


def test_a_server_that_is_not_there(chat):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert f"no server answers at http://127.0.0.1:{port}" in chat(url=f"http://127.0.0.1:{port}", status=1).stderr
    with answering(status="\0") as url:
        assert "no server answers at" in chat(url=url, status=1).stderr


@pytest.mark.parametrize(
    "url",
    ["", "http://", "ftp://x", "http://a b", "http://x:99999", "http://x:y", "http://u:p@x", "http://x/?q", "http://x/#f",
     "http://[::1", "http://ü", "http://x\n", "file:///etc/passwd"],
)  # fmt: skip
def test_addresses_that_are_none(url):
    with pytest.raises(InvalidSettingError, match="no address of a server"):
        ServerConnection(url, key=None)


def test_addresses_that_mean_the_same(chat, fake):
    for url in (f"127.0.0.1:{fake.port}", f"{fake.url}/", f"{fake.url}/v1", f"{fake.url}/v1/"):
        assert chat("hello", url=url).stdout == "You said: hello \n"


@pytest.mark.parametrize(
    ("arguments", "option"),
    [(["--device", "cpu"], "--device"), (["--dtype", "int8"], "--dtype"), (["--max-length", "9"], "--max-length"),
     (["--lora", "x"], "--lora"), (["--revision", "x"], "--revision"), (["--devices", "cpu,cpu"], "--devices")],
)  # fmt: skip
def test_what_only_a_load_can_say_is_refused(chat, fake, arguments, option):
    assert f"{option} does not go with --url" in chat("hello", arguments=arguments, status=1).stderr
    assert fake.requests == []


def test_there_has_to_be_something_to_talk_to():
    result = CliRunner().invoke(app, ["chat"])
    assert result.exit_code == 2
    assert "--url" in result.output


WITHOUT_TORCH = """
import sys
from pipezoo.cli.main import app
app(["chat", "--url", sys.argv[1]], standalone_mode=False)
print(*{"torch", "transformers", "numpy", "fastapi", "pipezoo.serve"} & set(sys.modules), file=sys.stderr)
"""


def test_it_needs_no_torch(fake):
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, fake.url], input="hello\n", capture_output=True, text=True, timeout=60
    )
    assert (ended.stdout, ended.stderr) == ("You said: hello \n", "\n")


REMOTE = """
from pipezoo.cli.main import app
app(["chat", "--url", {url!r}, "--verbose"])
"""


@pytest.mark.slow
def test_ctrl_c_stops_an_answer_at_the_server(fake, tmp_path):
    with terminal(tmp_path, REMOTE.format(url=fake.url)) as chat:
        chat.type("endless\r")
        chat.shows("word word")
        chat.type(CTRL_C)
        chat.shows(" …\r\n")
        chat.shows("the first after ")
        chat.asks()
        deadline = time.monotonic() + 10
        while fake.num_gone == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert fake.num_gone == 1
        chat.type("/exit\r")
        chat.ends()
