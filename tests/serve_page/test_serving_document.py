"""docs/serving.md and the README's part on the server: what is shown works, and the tables have what there is."""

import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer.main

from pipezoo.cli.main import app as commands
from pipezoo.serve.app import build_app
from pipezoo.serve.engine.client import EngineClient
from pipezoo.serve.engine.messages import Load
from pipezoo.serve.service import Service
from pipezoo.serve.settings import ServeSettings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/serving.md").read_text()
README = (ROOT / "README.md").read_text().partition("## A server\n")[2].partition("\n## ")[0]
ADDRESS = "http://127.0.0.1:8000"
STARTS = re.compile(r"(\.venv/bin/)?pip install|pipezoo serve")


def commands_of(text):
    """What is behind a `$`, with the lines that go on with it."""
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    return [command.strip() for block in blocks for command in re.split(r"^\$ ", block, flags=re.M) if command]


@contextmanager
def running(command, folder):
    """Runs a command that serves, and yields its address."""
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    try:
        said = []
        while not (said and said[-1].startswith("serving at ")):
            line = process.stderr.readline()
            assert line, said
            said.append(line)
        yield said[-1].split()[-1]
    finally:
        process.terminate()
        process.stderr.read()
        process.stderr.close()
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """Runs a command as a reader would type it, with the server that the page starts."""
    folder = tmp_path_factory.mktemp("shell")
    (folder / "pipezoo").write_text(f'#!/bin/sh\nexec {sys.executable} -m pipezoo "$@"\n')
    (folder / "pipezoo").chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    (start,) = {command for command in commands_of(PAGE + README) if command.startswith("pipezoo serve")}
    with running([sys.executable, "-m", *start.split(), "--port", "0"], folder) as address:

        def run(command):
            ended = subprocess.run(
                ["sh", "-c", command.replace(ADDRESS, address)],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert ended.returncode == 0, ended.stderr
            return ended.stdout

        run.folder = folder
        run.address = address
        yield run


@pytest.mark.slow
@pytest.mark.parametrize("text", [PAGE, README], ids=["page", "readme"])
def test_commands(shell, text):
    asked = [command for command in commands_of(text) if not STARTS.match(command)]
    assert len(asked) >= 2
    for command in asked:
        assert "Tokyo" in re.sub(r'"}.*?"content":"', "", shell(command)), command  # pieces of a stream are joined


@pytest.mark.slow
@pytest.mark.parametrize("text", [PAGE, README], ids=["page", "readme"])
def test_scripts(shell, text):
    for name, script in re.findall(r"```python (\S+)\n(.*?)```", text, re.DOTALL):
        (shell.folder / name).write_text(script.replace(ADDRESS, shell.address))
        shown = shell(f"{sys.executable} {name}")
        assert shown.count("Tokyo") == script.count("print(")


@pytest.mark.slow
def test_the_page_with_a_model(shell, visit):
    here = visit(shell.address)
    here.page.get_by_role("button", name="Settings", exact=True).click()
    here.page.locator("#settings [name=temperature]").fill("0")
    here.page.keyboard.press("Escape")
    assert "Tokyo" in here.ask("What is the capital of Japan?")
    assert re.search(r"^\d+ tokens · .*prompt \d+", here.page.locator(".message.assistant .note").inner_text())
    here.page.get_by_role("button", name="Settings", exact=True).click()
    here.page.locator("#settings [name=stop]").fill("x" * 2000)
    here.page.keyboard.press("Escape")
    here.send("hello")
    here.page.get_by_role("alert").get_by_text("stop").wait_for()


@pytest.mark.slow
def test_metrics_that_are_named(shell):
    there = shell(f"curl -s {ADDRESS}/metrics")
    named = re.findall(r"`(vllm:\w+)`", PAGE)
    assert len(named) >= 3
    assert [name for name in named if f"# TYPE {name} " not in there] == []


@pytest.fixture(scope="module")
def schema():
    client = EngineClient(Load("model", {}), max_queue=1)
    return build_app(Service(ServeSettings(enable_adapters=True), client)).openapi()


def rows(title):
    """The names in the first column of a table, and the other columns."""
    text = PAGE.partition(f"## {title}\n")[2].partition("\n#")[0]
    return [
        (re.findall(r"`([^`]+)`", first), rest) for first, rest in re.findall(r"^\| (`.*?) \| (.*) \|$", text, re.M)
    ]


def fields(schema, path):
    name = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    return set(schema["components"]["schemas"][name.rpartition("/")[2]]["properties"])


def test_every_endpoint_is_listed(schema):
    served = {f"{method.upper()} {path}" for path, methods in schema["paths"].items() for method in methods}
    assert {name for names, _ in rows("Endpoints") for name in names} == served | {"GET /", "GET /openapi.json"}


def test_every_field_is_listed(schema):
    shared = {name for names, _ in rows("Fields of both completions") for name in names}
    for path in ("/v1/chat/completions", "/v1/completions"):
        own = {name for names, _ in rows(f"Fields of `{path}`") for name in names}
        assert own | shared == fields(schema, path)
        assert not own & shared
    of_responses = {name for names, _ in rows("Fields of `/v1/responses`") for name in names}
    assert of_responses == fields(schema, "/v1/responses")
    for (path,), listed in rows("Fields of the others"):
        assert set(re.findall(r"`(\w+)`", listed)) == fields(schema, path)


def test_every_option_is_listed():
    params = {param.opts[0]: param for param in typer.main.get_command(commands).commands["serve"].params}
    of_loads = {
        "model",
        "--revision",
        "--plugin",
        "--device",
        "--devices",
        "--dtype",
        "--max-length",
        "--kv-cache-memory",
    }
    listed = {name: rest for (name,), rest in rows("Options")}
    assert {*listed} == params.keys() - of_loads
    for name, rest in listed.items():
        if default := re.match(r"`(.*?)` \|", rest):
            assert (
                default[1] == f"{params[name].default:g}" if name == "--shutdown-timeout" else str(params[name].default)
            )
