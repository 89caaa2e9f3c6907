"""The command line as a user types it."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from pipezoo import registry
from pipezoo.cli.main import app
from pipezoo.discovery import PluginInfo, PluginState

WIDE = {**os.environ, "COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
SMALL = ["--dtype", "float32", "--device", "cpu", "--kv-cache-memory", "4MiB"]


def pipezoo(*arguments, **options):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=WIDE, **options)


def test_python_m_pipezoo():
    result = subprocess.run([sys.executable, "-m", "pipezoo", "--help"], capture_output=True, text=True, check=True)
    assert all(command in result.stdout for command in ("plugins", "why", "info", "generate", "chat"))


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
    assert "rejected  mistral" in result.stdout


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
