"""What the documents say of files, settings and plugins is so."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipezoo.cli.chat_commands import ChatCommands, ChatState
from pipezoo.cli.main import app
from pipezoo.loading.settings import LoadSettings
from pipezoo_core.sampling_params import SamplingParams

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs/writing-a-plugin.md"


def test_they_name_files_that_exist():
    folders = ("docs", "core", "registry", "plugins", "kernels", "examples")
    documents = [*ROOT.glob("*.md"), *(path for folder in folders for path in (ROOT / folder).rglob("*.md"))]
    for document in documents:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document}: {target}"
    for path in re.findall(r"`(pipezoo(?:_core)?/[\w/]+(?:\.py|/))`", (ROOT / "docs/architecture.md").read_text()):
        folder = "core" if path.startswith("pipezoo_core") else "registry"
        assert (ROOT / folder / "src" / path).exists(), path


def test_python_in_the_readme_is_the_examples():
    """The README's Python blocks run: each is one of the examples, which the tests of SmolLM2 run."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for block, name in zip(blocks, ["quickstart", "structured_output", "lora", "several_devices"], strict=True):
        body = (ROOT / f"examples/{name}.py").read_text().partition('"""\n\n')[2]
        assert ast.dump(ast.parse(block)) == ast.dump(ast.parse(body)), name


# What of an answer shows that it is right, for each command of the README whose answer a model gives.
ANSWERS = ["Paris", '"text": "The capital of Japan is Tokyo."', "1945", "The capital of Japan is Tokyo."]


@pytest.mark.slow
def test_commands_of_the_readme(tmp_path):
    """Each does what the README shows it for, as a reader would type it."""
    section = (ROOT / "README.md").read_text().partition("## On the command line\n")[2].partition("\n## ")[0]
    commands = re.findall(r"^\$ (.*)$", section, re.M)
    (tmp_path / "pipezoo").write_text(f'#!/bin/sh\nexec {sys.executable} -m pipezoo "$@"\n')
    (tmp_path / "pipezoo").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HF_HUB_CACHE": str(tmp_path)}
    shown = {
        command: subprocess.run(
            ["sh", "-c", command], env=environment, capture_output=True, text=True, check=True, timeout=300
        ).stdout
        for command in commands
    }
    answers = [answer for command, answer in shown.items() if re.search("pipezoo (generate|chat)", command)]
    for answer, expected in zip(answers, ANSWERS, strict=True):
        assert expected in answer
    assert all(shown.values())


def test_the_readme_names_every_command():
    commands = {command.callback.__name__ for command in app.registered_commands}
    readme = (ROOT / "README.md").read_text()
    assert commands == set(re.findall(r"^\$.*pipezoo (\w+)", readme, re.M))
    assert set(ChatCommands(ChatState(SamplingParams(), system=None, sampling={})).names) == set(
        re.findall(r"`(/\w+)", readme)
    )


def table(title):
    """The settings under a heading of docs/settings.md, and their defaults."""
    section = (ROOT / "docs/settings.md").read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]
    return {
        name: ast.literal_eval(default) for name, default in re.findall(r"^\| `(\w+)` \| `(.+?)` \|", section, re.M)
    }


def defaults(settings):
    return {name: field.get_default(call_default_factory=True) for name, field in settings.model_fields.items()}


def test_settings_of_a_load():
    assert table("Loading a model") == defaults(LoadSettings)


def test_settings_of_sampling():
    assert table("Sampling") == defaults(SamplingParams)


@pytest.mark.slow
def test_the_plugin_of_the_guide_passes_its_test(tmp_path):
    """It is built, installed beside pipezoo, and tested as its author would."""
    blocks = re.findall(r"```\w+ (\S+)\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert len(blocks) == 6
    for name, text in blocks:
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "project/src/pipezoo_qwen2/__init__.py").touch()

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=tmp_path / "project",
            env={"PYTHONPATH": str(tmp_path / "site"), "PATH": ""},
            capture_output=True,
            text=True,
            timeout=540,
        )

    install = run("pip", "install", "--no-deps", "--no-build-isolation", "--target", str(tmp_path / "site"), ".")
    assert install.returncode == 0, install.stderr
    tested = run("pytest", "-q", "-p", "no:cacheprovider")
    assert tested.returncode == 0, tested.stdout
    assert "2 passed" in tested.stdout
    assert re.search(r"qwen2 .*pipezoo-qwen2 .*available", run("pipezoo", "plugins").stdout)
