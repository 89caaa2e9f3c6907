"""What the distributions have in common: one version, ranges instead of pins, sorted public names, import rules."""

import importlib
import importlib.metadata
import json
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from trove_classifiers import classifiers

import pipezoo

ROOT = Path(__file__).parents[2]
MEMBERS = [
    "core",
    "registry",
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
PACKAGES = [
    "pipezoo_core",
    "pipezoo",
    "pipezoo_deepseek",
    "pipezoo_gemma",
    "pipezoo_gpt",
    "pipezoo_gpt_oss",
    "pipezoo_granite",
    "pipezoo_lfm2",
    "pipezoo_llama",
    "pipezoo_mistral",
    "pipezoo_nemotron",
    "pipezoo_olmo",
    "pipezoo_phi",
    "pipezoo_qwen",
    "pipezoo_replit",
    "pipezoo_transformers",
]
PLUGINS = tuple(PACKAGES[2:])


def project(member):
    return tomllib.loads((ROOT / member / "pyproject.toml").read_text())["project"]


def test_one_version():
    assert len({project(member)["version"] for member in [".", "kernels", *MEMBERS]}) == 1


@pytest.mark.parametrize("member", ["kernels", *MEMBERS])
def test_what_a_package_says_of_itself(member):
    """PyPI knows its classifiers, and its license is the repository's."""
    said = project(member)
    assert {*said["classifiers"]} <= classifiers
    assert said["classifiers"] == sorted(said["classifiers"])
    assert said["keywords"] == sorted(said["keywords"])
    assert said["license-files"] == ["LICENSE"]
    assert (ROOT / member / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize("member", MEMBERS)
def test_requirements_are_ranges_and_plugins_leave_torch_alone(member):
    requirements = project(member)["dependencies"]
    assert not any("==" in requirement for requirement in requirements)
    if member.startswith("plugins/"):
        names = {re.split(r"[<>=]", requirement)[0] for requirement in requirements}
        assert "pipezoo-core" in names
        assert not names & {"torch", "transformers"}


def test_constraints_pin_what_the_packages_require():
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    required = {
        re.split(r"[<>=]", requirement)[0] for member in MEMBERS for requirement in project(member)["dependencies"]
    }
    extras = project("registry")["optional-dependencies"]
    dev = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for listed in (*extras.values(), *dev.values()):
        required |= {re.split(r"[\[<>=]", requirement)[0] for requirement in listed}
    ours = {"pipezoo", "pipezoo-core", "pipezoo-workspace"}
    assert required - ours <= pinned


def modules():
    for package in PACKAGES:
        yield package
        for info in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            if not info.name.endswith("__main__"):
                yield info.name


def order(name):
    """Constants, classes, functions; a number within a name counts as one: Qwen3Next comes before Qwen35."""
    parts = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
    return not name.isupper(), name[0].islower(), parts


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_public_names_are_listed_sorted_and_there():
    for name in modules():
        module = importlib.import_module(name)
        assert list(module.__all__) == sorted(module.__all__, key=order), name
        assert all(hasattr(module, public) for public in module.__all__), name


def imported_by(statement):
    code = f"import sys\n{statement}\nimport json; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return set(json.loads(output.splitlines()[-1]))


HEAVY = {"torch", "transformers", "numpy", "huggingface_hub", "safetensors", "gguf", "tokenizers", "jinja2"}


@pytest.mark.parametrize(
    "statement",
    [
        "import pipezoo",
        "import pipezoo_core",
        "import pipezoo; pipezoo.__version__; pipezoo.load; pipezoo.PipezooError; dir(pipezoo)",
        "from pipezoo import SamplingParams; SamplingParams(temperature=0)",
        "from pipezoo.loading.settings import LoadSettings; LoadSettings(dtype='int8')",
        "from pipezoo import registry; registry.plugins()",
        "import pipezoo_core.testing.pytest_plugin",
        f"import {', '.join(f'{name}.plugin' for name in PLUGINS)}",
        "from typer.testing import CliRunner; from pipezoo.cli.main import app; CliRunner().invoke(app, ['plugins'])",
    ],
)
def test_listing_imports_nothing_heavy(statement):
    imported = imported_by(statement)
    assert not imported & HEAVY
    if "plugin," not in statement:
        assert not any(name.startswith(PLUGINS) for name in imported)


def test_what_decides_on_the_host_is_there_without_torch():
    """What the contract says of the source is true at run time, too: a package's `__init__` counts there."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    names = next(contract for contract in contracts if contract["id"] == "host-only")["source_modules"]
    imported = imported_by(f"import {', '.join(names)}")
    assert not imported & {"torch", "transformers"}
    decide = ("paging.page_pool", "paging.prefix_cache", "paging.claim", "scheduling.scheduler", "scheduling.router")
    state = ("context", "request", "sampling_params")
    assert {f"pipezoo_core.{name}" for name in (*decide, *state)} <= imported


FOR_TYPES = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import {}"


def test_what_most_programs_need_is_at_the_top():
    from pipezoo_core import errors, request, sampling_params

    assert pipezoo.load is pipezoo.registry.load
    assert pipezoo.PipezooError is errors.PipezooError
    assert pipezoo.SamplingParams is sampling_params.SamplingParams
    assert pipezoo.TextGenerationRequest is request.TextGenerationRequest
    assert pipezoo.TextGenerationOutput is request.TextGenerationOutput
    assert pipezoo.__version__ == importlib.metadata.version("pipezoo")
    assert set(pipezoo.__all__) <= set(dir(pipezoo))
    with pytest.raises(AttributeError, match="nonesuch"):
        pipezoo.nonesuch  # noqa: B018


def lint_imports(folder):
    return subprocess.run(
        [sys.executable, "-c", "import sys; from importlinter.cli import lint_imports_command as c; sys.exit(c())"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": ":".join(str(folder / member / "src") for member in MEMBERS)},
    )


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("module", "planted", "contract"),
    [
        (None, None, None),
        ("plugins/llama/src/pipezoo_llama/model.py", "import pipezoo_mistral", "meet only in core"),
        ("registry/src/pipezoo/loading/plan.py", "import pipezoo_llama", "meet only in core"),
        ("registry/src/pipezoo/files/hub.py", FOR_TYPES.format("pipezoo.loading.find"), "Inside the registry"),
        ("registry/src/pipezoo/loading/plan.py", FOR_TYPES.format("pipezoo.loading.build"), "Inside a load"),
        ("registry/src/pipezoo/discovery/index.py", FOR_TYPES.format("pipezoo.discovery.choice"), "Inside discovery"),
        ("registry/src/pipezoo/files/hub.py", FOR_TYPES.format("pipezoo.files.checkpoint"), "Inside the files"),
        ("core/src/pipezoo_core/decoder/model.py", "import pipezoo", "Core imports neither"),
        ("core/src/pipezoo_core/kv_cache/manager.py", "import pipezoo_core.decoder", "imports go one way"),
        ("core/src/pipezoo_core/request.py", FOR_TYPES.format("pipezoo_core.context"), "imports go one way"),
        ("core/src/pipezoo_core/context.py", "import torch", "imports no torch"),
    ],
)
def test_import_rules(module, planted, contract, tmp_path):
    """The contracts of pyproject.toml hold, and a planted violation of each is found."""
    for member in MEMBERS:
        shutil.copytree(ROOT / member / "src", tmp_path / member / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    if module is None:
        result = lint_imports(tmp_path)
        assert result.returncode == 0, result.stdout + result.stderr
        return
    path = tmp_path / module
    path.write_text(path.read_text() + f"\n{planted}\n")
    result = lint_imports(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert re.search(rf"{contract}.* BROKEN", result.stdout)
