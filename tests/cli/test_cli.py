"""The command line as a user types it."""

import importlib.metadata
import io
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from pipezoo import registry
from pipezoo.cli.main import app
from pipezoo.cli.text_input import prompt_text
from pipezoo.discovery.index import PluginInfo, PluginState
from pipezoo.discovery.published import PUBLISHED
from pipezoo_core.errors import EmptyPromptError
from pipezoo_core.request import GenerationStatus, TextGenerationOutput
from pipezoo_core.sampling_params import SamplingParams

WIDE = {**os.environ, "COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
RULES = "\n".join(["start: r0", *(f'r{i}: r{i + 1} "a"' for i in range(3_000)), 'r3000: "b"'])
SMALL = ["--dtype", "float32", "--device", "cpu", "--kv-cache-memory", "4MiB"]


def pipezoo(*arguments, **options):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=WIDE, **options)


def test_python_m_pipezoo():
    result = subprocess.run([sys.executable, "-m", "pipezoo", "--help"], capture_output=True, text=True, check=True)
    assert all(command in result.stdout for command in ("plugins", "why", "info", "generate", "chat"))


STARTS = """
import sys
from rich.status import Status
from pipezoo.cli.main import app

shown, seen = [], []

class Stop(BaseException):
    pass

class Watch:
    def find_spec(self, name, *_):
        if name == "torch":
            seen.append(list(shown))
            raise Stop

Status.start = lambda self: shown.append(self.status)
Status.stop = lambda self: shown.clear()
sys.meta_path.insert(0, Watch())
sys.stderr.isatty = lambda: True
for command in (["generate", "m", "hi"], ["generate", "m", "hi", "--chat"], ["chat", "m"], ["quantize", "m", "out"]):
    try:
        app(command, standalone_mode=False)
    except Stop:
        pass
print(seen)
"""


def test_at_a_terminal_it_is_said_that_pytorch_starts():
    found = subprocess.run([sys.executable, "-c", STARTS], capture_output=True, text=True, check=True, env=WIDE)
    assert found.stdout.strip() == str([["starting PyTorch"]] * 4)


def test_plugins():
    """In a process of its own, as always on a command line: in this one a plugin may be loaded, and shown to be."""
    command = [sys.executable, "-m", "pipezoo", "plugins"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=WIDE)
    assert re.search(r"llama\s+│\s+pipezoo-llama\s+│\s+\d+\.\d+\.\d+\s+│\s+available", result.stdout)


def test_plugins_with_a_setting_that_cannot_be_understood():
    command = [sys.executable, "-m", "pipezoo", "plugins"]
    result = subprocess.run(command, capture_output=True, text=True, env={**WIDE, "PIPEZOO_PLUGINS": "nonsense"})
    assert result.returncode == 1
    assert "error: PIPEZOO_PLUGINS: item 'nonsense' is neither" in result.stderr
    assert "Traceback" not in result.stderr


def test_plugins_that_are_not_installed_are_shown_when_asked_for(monkeypatch):
    found = PluginInfo("llama", "pipezoo-llama", "1.2", "pipezoo_llama.plugin")
    monkeypatch.setattr(registry, "plugins", lambda: [found])
    assert "not installed" not in pipezoo("plugins").stdout
    rows = pipezoo("plugins", "--available").stdout.splitlines()
    [own] = [row for row in rows if " llama " in row]
    assert "1.2" in own
    assert "not installed" not in own
    [other] = [row for row in rows if " mpt " in row]
    assert "not installed" in other
    assert "pip install pipezoo-replit" in other
    assert sum("pipezoo-" in row for row in rows) == len(PUBLISHED)


def test_plugins_are_shown_with_their_brackets(monkeypatch):
    reason = "ImportError: list[int] [/x] Try: pip install 'pipezoo-core[structured]' :smile:"
    found = PluginInfo("llama", "pipezoo-llama", "1.0", "some.module", PluginState.broken, reason)
    monkeypatch.setattr(registry, "plugins", lambda: [found])
    result = pipezoo("plugins")
    assert result.exit_code == 0, result.output
    assert reason in result.stdout


def test_version():
    """At once: without torch, and without a command."""
    run = "from pipezoo.cli.main import app; app(['--version'], standalone_mode=False)"
    code = f"import sys; {run}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    version, modules = result.stdout.splitlines()
    assert version == importlib.metadata.version("pipezoo")
    assert not {"torch", "transformers"} & set(modules.split())


def test_why(tiny_folder):
    result = pipezoo("why", tiny_folder)
    assert "LlamaForCausalLM of pipezoo-llama" in result.stdout
    _, taken, *_, others = result.stdout.splitlines()
    assert taken.startswith("taken     llama (pipezoo-llama ")
    assert re.fullmatch(r"rejected  plugins that serve others: \d+; `pipezoo plugins` lists them", others)


def test_info(tiny_folder):
    result = pipezoo("info", tiny_folder, *SMALL, "--max-length", 100)
    assert result.exit_code == 0, result.output
    for expected in (
        "LlamaForCausalLM",
        "pipezoo-llama",
        "float32",
        "native kernels",
        "replayed steps",
        "temperature",
        "KV cache",
    ):
        assert expected in result.stdout
    assert re.search(r"max_length\s+│ 100 ", result.stdout)
    assert re.search(r"KV cache\s+│ 4\.0 MiB", result.stdout)


def test_info_shows_brackets(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "list[int][" / "x]")
    result = pipezoo("info", folder, *SMALL)
    assert result.exit_code == 0, result.output
    assert "list[int][/x]" in result.stdout


def test_generate(tiny_folder):
    arguments = ["generate", tiny_folder, *SMALL, "--max-new-tokens", 6, "--temperature", 0]
    first = pipezoo(*arguments, "hello")
    assert first.exit_code == 0, first.output
    assert len(first.stdout) > 1
    assert pipezoo(*arguments, "-", input="hello").stdout == first.stdout
    assert pipezoo(*arguments, "--chat", "hello").stdout != first.stdout


def test_generate_as_json(tiny_folder):
    arguments = ["generate", tiny_folder, *SMALL, "--max-new-tokens", 6, "--temperature", 0, "hello"]
    found = json.loads(pipezoo(*arguments, "--json").stdout)
    assert found["text"] + "\n" == pipezoo(*arguments).stdout
    assert (found["finish_reason"], found["stop_reason"]) == ("length", None)
    assert found["usage"]["num_generated_tokens"] == 6
    assert 0 < found["timing"]["first_token"] < found["timing"]["total"]
    stopped = json.loads(pipezoo(*arguments, "--json", "--regex", "ab", "--stop", "x", "--stop", "b").stdout)
    assert (stopped["text"], stopped["finish_reason"], stopped["stop_reason"]) == ("a", "stop", "b")


def test_generate_takes_each_setting_to_the_model(tiny_folder, monkeypatch):
    given = {"max_new_tokens": 5, "temperature": 0.5, "top_p": 0.75, "top_k": 7, "min_p": 0.25, "seed": 3,
             "repetition_penalty": 1.5, "stop": ["x", "y"], "regex": "a+"}  # fmt: skip
    seen = {}

    class Model:
        sampling_params = SamplingParams()

        async def generate_async(self, prompt, **sampling):
            seen.update(sampling, prompt=prompt)
            ended = GenerationStatus.END_OF_SEQUENCE
            yield [TextGenerationOutput(request_id="r", text="!", tokens=[1], final_status=ended)]

    monkeypatch.setattr(registry, "load", lambda model, **settings: Model())
    words = [
        word
        for name, value in given.items()
        for one in (value if isinstance(value, list) else [value])
        for word in (f"--{name.replace('_', '-')}", one)
    ]
    result = pipezoo("generate", "tiny", "hello", *words)
    assert result.exit_code == 0, result.output
    assert seen == {**given, "prompt": "hello"}
    seen.clear()
    assert pipezoo("generate", "tiny", "hello", "--chat").stdout == "!\n"
    assert seen == {"prompt": [{"role": "user", "content": "hello"}], "max_new_tokens": 512}


@pytest.mark.parametrize(
    ("typed", "prompt"), [("a\n", "a"), ("a\n\n", "a\n"), ("a\r\n", "a"), (" a", " a"), ("\n", None)]
)
def test_the_last_line_break_of_standard_input_is_not_of_the_prompt(monkeypatch, typed, prompt):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(typed.encode()), "utf-8"))
    if prompt is None:
        with pytest.raises(EmptyPromptError):
            prompt_text("-")
    else:
        assert prompt_text("-") == prompt


def test_generate_ends_by_itself(tiny_folder, monkeypatch):
    monkeypatch.setattr("pipezoo.cli.generation._MAX_NEW_TOKENS", 9)
    arguments = ["generate", tiny_folder, *SMALL, "--seed", 1, "hello"]
    result = pipezoo(*arguments)
    assert "Stopped after 9 tokens; --max-new-tokens asks for more." in result.stderr
    assert json.loads(pipezoo(*arguments, "--json").stdout)["usage"]["num_generated_tokens"] == 9
    short = pipezoo(*arguments, "--max-length", "40", "--json", "--max-new-tokens", "500")
    assert json.loads(short.stdout)["usage"]["num_generated_tokens"] < 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "-1"], "temperature"),
        (["--top-p", "2"], "top_p"),
        (["--min-p", "2"], "min_p"),
        (["--max-new-tokens", "0"], "max_new_tokens"),
        (["--repetition-penalty", "0"], "repetition_penalty"),
        (["--stop", ""], "stop"),
        (["--json-schema", "nowhere.json"], "json_schema"),
        (["--grammar", "LATIN1"], "latin1 is no text"),
        (["--regex", "a", "--grammar", "b"], "'regex' excludes 'grammar'"),
        (["--regex", "("], "unclosed group"),
        (["--grammar", RULES], "too complex"),
        (["--grammar", "start: nothing"], "nothing"),
        (["--grammar", "start: start"], "no token of the vocabulary can follow"),
        (["--json-schema", '{"type": "nonsense"}'], "nonsense"),
    ],
)
def test_settings_are_checked_before_a_model_is_touched(monkeypatch, tmp_path, arguments, message):
    monkeypatch.setattr(registry, "load", lambda *_, **__: pytest.fail("loaded"))
    latin1 = tmp_path / "latin1"
    latin1.write_bytes("für".encode("latin1"))
    result = pipezoo("generate", "org/model", "hello", *[latin1 if a == "LATIN1" else a for a in arguments])
    assert result.exit_code == 1, result.output
    assert message in result.stderr


@pytest.mark.parametrize("typed", ["", "\n", b"f\xfcr"])
def test_a_prompt_is_checked_before_a_model_is_touched(monkeypatch, typed):
    monkeypatch.setattr(registry, "load", lambda *_, **__: pytest.fail("loaded"))
    result = pipezoo("generate", "org/model", "-", input=typed)
    assert result.exit_code == 1
    assert "the prompt is empty" in result.stderr or "standard input is not UTF-8 text" in result.stderr


@pytest.mark.parametrize("command", [[], ["plugins"], ["why"], ["info"], ["generate"], ["chat"]])
def test_help_everywhere(command):
    assert pipezoo(*command, "-h").stdout == pipezoo(*command, "--help").stdout != ""


def test_generate_follows_a_schema_a_regex_or_a_grammar(tiny_folder, tmp_path):
    schema, grammar = '{"enum": ["red", "blue"]}', 'start: "yes" | "no"'
    (tmp_path / "schema.json").write_text(schema)
    (tmp_path / "grammar.lark").write_text(grammar)
    arguments = ["generate", tiny_folder, *SMALL, "hello"]
    for option, value, answers in (
        ("--json-schema", schema, ['"red"', '"blue"']),
        ("--json-schema", tmp_path / "schema.json", ['"red"', '"blue"']),
        ("--regex", "[ab]", ["a", "b"]),
        ("--grammar", grammar, ["yes", "no"]),
        ("--grammar", tmp_path / "grammar.lark", ["yes", "no"]),
    ):
        result = pipezoo(*arguments, option, value)
        assert result.exit_code == 0, result.output
        assert result.stdout in [answer + "\n" for answer in answers]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["why", "./nowhere"], 1, "nowhere"),
        (["info", "pkg:no_such_package"], 1, "no_such_package"),
        (["generate", "TINY", "hello", "--temperature", "nan"], 1, "temperature"),
        (["generate", "TINY", "hello", "--dtype", "float7"], 1, "float7"),
        (["generate", "TINY", "hello", "--regex", "("], 1, "regex"),
        (["generate", "TINY", "hello", "--json-schema", "nowhere.json"], 1, "nowhere.json"),
        (["generate", "TINY", "hello", "--regex", "a", "--grammar", "b"], 1, "'regex' excludes 'grammar'"),
        (["generate", "TINY", ""], 1, "prompt is empty"),
        (["generate", "TINY"], 2, "prompt"),
        (["frobnicate"], 2, "frobnicate"),
    ],
)
def test_errors_are_text_without_a_traceback(tiny_folder, arguments, status, message):
    result = pipezoo(*[tiny_folder if argument == "TINY" else argument for argument in arguments])
    assert result.exit_code == status
    assert message.lower() in result.stderr.lower()
    assert "Traceback" not in result.stderr
