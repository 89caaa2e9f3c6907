"""`pipezoo new-plugin`: what it writes, what it refuses, and how what it wrote is brought up to date."""

import builtins
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pexpect
import pytest
import yaml
from packaging.requirements import Requirement
from trove_classifiers import classifiers
from typer.testing import CliRunner

from pipezoo.authoring import template_repository as repository
from pipezoo.authoring.new_plugin import LICENSES, NewPlugin, _facts, update_plugin
from pipezoo.authoring.reference import reference_of
from pipezoo.cli.main import app
from pipezoo_core.errors import InvalidSettingError, MissingDependencyError, UnreadableFileError, UnsupportedModelError
from pipezoo_core.hookspecs import API_VERSION

ROOT = Path(__file__).parents[2]
COMMITTER = ["-c", "user.name=Somebody", "-c", "user.email=somebody@localhost"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home of the test's own, and a working directory in it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    for who in ("AUTHOR", "COMMITTER"):  # copier commits in a copy of its own
        monkeypatch.setenv(f"GIT_{who}_NAME", "Somebody")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "somebody@localhost")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def new_plugin(*arguments, expected=0):
    result = CliRunner().invoke(app, ["new-plugin", *arguments], env={"NO_COLOR": "1"})
    assert result.exit_code == expected, result.output
    return result.output


def git(*arguments, folder):
    command = ["git", "-C", str(folder), *COMMITTER, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def written(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def check_style(folder):
    """What is written passes the linter and the formatter that it is set up for, and is Python."""
    for command in (["check"], ["format", "--check"]):
        settings = ["--config", "pyproject.toml", "--no-cache"]
        checked = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *settings, "."], cwd=folder, capture_output=True, text=True
        )
        assert checked.returncode == 0, checked.stdout


OWN = {
    ".copier-answers.yml",
    ".github/workflows/ci.yml",
    ".gitignore",
    "LICENSE",
    "README.md",
    "pyproject.toml",
    "src/pipezoo_my_arch/__init__.py",
    "src/pipezoo_my_arch/config.py",
    "src/pipezoo_my_arch/huggingface_config.py",
    "src/pipezoo_my_arch/model.py",
    "src/pipezoo_my_arch/plugin.py",
    "src/pipezoo_my_arch/py.typed",
    "src/pipezoo_my_arch/weight_adapters.py",
    "tests/test_pipezoo_my_arch.py",
}


def test_a_package_is_written(home):
    said = new_plugin("my_arch", "--author", 'Ada "L" Ü', "--email", "ada@localhost")
    folder = home / "pipezoo-my-arch"
    assert "pipezoo-my-arch is written" in said
    assert written(folder) == OWN
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["authors"] == [{"name": 'Ada "L" Ü', "email": "ada@localhost"}]
    assert project["entry-points"]["pipezoo.plugins"] == {"my_arch": "pipezoo_my_arch.plugin"}
    assert {*project["classifiers"]} <= classifiers
    [core] = map(Requirement, project["dependencies"])
    installed = tomllib.loads((ROOT / "core/pyproject.toml").read_text())["project"]["version"]
    assert core.name == "pipezoo-core"
    assert core.specifier.contains(installed)
    assert not core.specifier.contains("1.0")
    assert f"API_VERSION = {API_VERSION}\n" in (folder / "src/pipezoo_my_arch/plugin.py").read_text()
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    check_style(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "starts"), [("MIT", "MIT License"), ("BSD-3-Clause", "BSD 3-Clause License")])
def test_other_licenses(home, name, starts):
    new_plugin("x", "--license", name, "--author", "Ada", "--folder", "here", "--name", "ada-x")
    text = (home / "here/LICENSE").read_text()
    assert text.startswith(starts)
    assert "Ada" in text
    assert "{" not in text
    assert f'license = "{name}"' in (home / "here/pyproject.toml").read_text()
    assert (home / "here/src/ada_x/plugin.py").is_file()


def test_a_package_from_a_type_of_transformers(home):
    new_plugin("stablelm", "--from-transformers", "stablelm")
    source = home / "pipezoo-stablelm/src/pipezoo_stablelm"
    assert not (source / "huggingface_config.py").exists()
    config = (source / "config.py").read_text()
    assert "    use_qkv_bias: bool\n" in config
    assert "use_parallel_residual: as in the Hugging Face config; `False` where config.json leaves it out." in config
    assert "norm_eps=config.layer_norm_eps," in config
    assert "model.layers.*.self_attn.q_proj.weight [2560, 2560]" in (source / "weight_adapters.py").read_text()
    assert "from transformers import StableLmConfig" in (source / "plugin.py").read_text()
    check_style(home / "pipezoo-stablelm")


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["gpt2", "nemotron"])
def test_types_without_rotary_positions_or_weights(home, model_type):
    """GPT-2 has positions that are learned; of Nemotron's defaults transformers makes no model."""
    said = new_plugin(model_type, "--from-transformers", model_type)
    assert ("pipezoo-gpt serves 'gpt2', too" in said) == (model_type == "gpt2")
    check_style(home / f"pipezoo-{model_type}")


@pytest.mark.slow
def test_every_type_of_transformers_is_described_or_refused():
    """For each that has attention layers of one kind there is what the template needs."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    refused = []
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            found = reference_of(model_type)
        except (InvalidSettingError, UnsupportedModelError):
            refused.append(model_type)
        else:
            assert found["weights"] or found["obstacle"]
            assert found["sizes"].keys() == reference_of("llama")["sizes"].keys()
    assert {"llama", "qwen3_moe", "deepseek_v3", "stablelm", "starcoder2"}.isdisjoint(refused)
    assert {"mamba", "rwkv", "whisper"} <= {*refused}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no model_type is given"),
        (["9lives"], "can be no model_type"),
        (["x", "--name", "-x"], "cannot have this name"),
        (["x", "--license", "GPL"], "no such license (found: 'GPL'"),
        (["x", "--author", "a\nb"], "author_name is not one line"),
        (["x", "--from-transformers", "stable_lm"], "Did you mean 'stablelm'?"),
        (["x", "--from-transformers", "mamba"], "found: no num_attention_heads"),
        (["x", "--folder", "full"], "full exists, and nothing is written over"),
        (["--update", "full"], "full has no .copier-answers.yml"),
    ],
)
def test_what_cannot_be_written_is_an_error(home, arguments, said):
    (home / "full").mkdir()
    (home / "full/mine.txt").write_text("mine")
    assert said.replace("'GPL'", "GPL") in new_plugin(*arguments, expected=1).replace("'GPL'", "GPL")
    assert written(home / "full") == {"mine.txt"}


def test_without_copier_or_git_it_says_what_to_install(home, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **settings):
        if name == "copier":
            raise ImportError(name)
        return real(name, *arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", without)
        with pytest.raises(MissingDependencyError, match=r"pip install './registry\[author\]'"):
            NewPlugin(model_type="x").write(home / "x", is_asked=False)
    monkeypatch.setattr(repository.shutil, "which", lambda _: None)
    with pytest.raises(MissingDependencyError, match="Install git"):
        NewPlugin(model_type="x").write(home / "x", is_asked=False)
    assert not (home / "x").exists()


def test_a_repository_that_is_none_is_an_error(home):
    folder = Path(repository.SOURCE).expanduser()
    folder.mkdir(parents=True)
    (folder / "mine.txt").touch()
    with pytest.raises(UnreadableFileError, match="Remove that folder"):
        NewPlugin(model_type="x").write(home / "x", is_asked=False)
    assert (folder / "mine.txt").exists()


def test_the_template_runs_nothing():
    """copier asks before it trusts a template that could: so it never has to."""
    for path in (ROOT / "registry/src/pipezoo/authoring/templates").glob("*/copier.yml"):
        keys = yaml.safe_load(path.read_text())
        assert not {"_tasks", "_migrations", "_jinja_extensions", "_external_data"} & {*keys}
        assert keys["license"]["choices"] == [*LICENSES]


@pytest.fixture
def second_revision(home, monkeypatch):
    """A template of which there is a second revision, once it is called."""
    templates = shutil.copytree(repository._TEMPLATES, home / "templates")
    monkeypatch.setattr(repository, "_TEMPLATES", templates)

    def release():
        shutil.copytree(templates / "1", templates / "2")
        readme = templates / "2/project/README.md.jinja"
        readme.write_text(readme.read_text() + "\nA line of the second revision.\n")

    return release


@pytest.mark.slow
def test_a_package_is_brought_up_to_date(home, second_revision):
    """What the author changed stays, and what the template changed comes, as copier's own command does it."""
    for name in ("first", "second"):
        NewPlugin(model_type="x").write(home / name, is_asked=False)
        model = home / name / "src/pipezoo_x/model.py"
        model.write_text(model.read_text() + "\n# mine\n")
        git("init", "--quiet", folder=home / name)
        git("add", "--all", folder=home / name)
        git("commit", "--quiet", "--message", "mine", folder=home / name)
    update_plugin(home / "first")
    assert git("status", "--short", folder=home / "first") == ""
    second_revision()
    update_plugin(home / "first")
    subprocess.run([sys.executable, "-m", "copier", "update", "--defaults", "--quiet"], cwd=home / "second", check=True)
    for name in ("first", "second"):
        assert (home / name / "README.md").read_text().endswith("\nA line of the second revision.\n")
        assert (home / name / "src/pipezoo_x/model.py").read_text().endswith("\n# mine\n")
        assert yaml.safe_load((home / name / ".copier-answers.yml").read_text())["_commit"] == "2"
        assert {line[3:] for line in git("status", "--short", folder=home / name).splitlines()} == {
            ".copier-answers.yml",
            "README.md",
        }


@pytest.mark.slow
def test_a_package_with_changes_is_not_brought_up_to_date(home, second_revision):
    NewPlugin(model_type="x").write(home / "x", is_asked=False)
    git("init", "--quiet", folder=home / "x")
    second_revision()
    with pytest.raises(InvalidSettingError, match="copier could not"):
        update_plugin(home / "x")
    assert "second revision" not in (home / "x/README.md").read_text()


@pytest.mark.slow
def test_the_repository_is_the_same_everywhere(home, monkeypatch, second_revision):
    def commits():
        return git("log", "--format=%H", folder=Path(repository.template_repository()).expanduser())

    first = commits()
    shutil.rmtree(home / ".local")
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Somebody else")
    assert commits() == first
    second_revision()
    both = commits()
    assert both.endswith(first)
    shutil.rmtree(repository._TEMPLATES / "2")  # an older pipezoo leaves what a newer one has made
    assert commits() == both


def at_a_terminal(home, *arguments):
    settings = {"encoding": "utf-8", "timeout": 60, "dimensions": (24, 120)}
    environment = {**os.environ, "PROMPT_TOOLKIT_NO_CPR": "1"}  # this terminal does not say where its cursor is
    command = ["-m", "pipezoo", "new-plugin", "x", *arguments]
    return pexpect.spawn(sys.executable, command, cwd=home, env=environment, **settings)


@pytest.mark.slow
def test_at_a_terminal_it_asks_for_what_no_option_says(home):
    """Description, author and address; the license is an option here."""
    terminal = at_a_terminal(home, "--license", "MIT")
    terminal.expect("which models the plugin serves")
    terminal.send("\r")
    terminal.expect("The author's name")
    terminal.send("\x15Ada\r")  # Ctrl-U takes the default away
    terminal.expect("The author's address")
    terminal.send("\r")
    terminal.expect("pipezoo-x is written")
    terminal.expect(pexpect.EOF)
    project = tomllib.loads((home / "pipezoo-x/pyproject.toml").read_text())["project"]
    assert (project["authors"], project["license"]) == ([{"name": "Ada"}], "MIT")


@pytest.mark.slow
def test_ctrl_c_at_a_question_writes_nothing(home):
    terminal = at_a_terminal(home)
    terminal.expect("which models the plugin serves")
    terminal.send("\x03")
    said = terminal.read()
    terminal.close()
    assert terminal.exitstatus == 130
    assert "Traceback" not in said
    assert not (home / "pipezoo-x").exists()


def test_a_type_with_a_dot(home):
    new_plugin("phi.5")
    read = tomllib.loads((home / "pipezoo-phi-5/pyproject.toml").read_text())
    assert read["project"]["entry-points"]["pipezoo.plugins"] == {"phi.5": "pipezoo_phi_5.plugin"}
    check_style(home / "pipezoo-phi-5")


def test_a_word_of_python_is_no_package():
    assert NewPlugin(model_type="anything", distribution="class").package == "pipezoo_class"


def test_the_requirement_of_a_release_candidate_allows_it(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.3.0rc1")
    requirement = Requirement(_facts()["core_requirement"])
    assert requirement.specifier.contains("0.3.0rc1", prereleases=True)
    assert requirement.specifier.contains("0.3.0")
    assert not requirement.specifier.contains("0.4.0")


def test_head_dim_is_read_where_config_json_says_it(home):
    assert reference_of("starcoder2")["sizes"]["head_dim"] == (
        'getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads'
    )
