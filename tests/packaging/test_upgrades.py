"""A newer core beside an older plugin: it is served, or it is a row that says why not."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from clean_python import install, make_clean_python, run
from packaging.version import Version

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
VERSION = runpy.run_path(str(ROOT / "version.py"))
NOW = VERSION["current"]()
LOAD = """
import sys
from pipezoo import registry
with registry.load(sys.argv[1], dtype="float32", device="cpu", kv_cache_memory="4MiB") as llm:
    print(len(llm.generate("hello", max_new_tokens=5, ignore_eos=True)[0].tokens), "tokens")
"""


def wheel(member, version, folder, *, api_steps=0):
    """Builds a package as it would be in another version, its API_VERSION so many steps further."""
    source = shutil.copytree(ROOT / member, folder / "source" / version / member)
    project = source / "pyproject.toml"
    project.write_text(VERSION["rewritten"](project.read_text(), version))
    specs = source / "src/pipezoo_core/hookspecs.py"
    if api_steps:
        text = re.sub(
            r"^API_VERSION = (\d+)",
            lambda found: f"API_VERSION = {int(found[1]) + api_steps}",
            specs.read_text(),
            flags=re.M,
        )
        specs.write_text(text)
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(folder / version),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return next((folder / version).glob(f"{'pipezoo_core' if member == 'core' else 'pipezoo*'}-*.whl"))


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory):
    """Installs a registry and a core of a version beside the plugin of today, and asks them of it."""
    folder = tmp_path_factory.mktemp("upgraded")
    python = make_clean_python(folder / "clean")
    install(python, wheel("plugins/llama", NOW, folder))

    def ask(version, model, *, api_steps=0):
        place = folder / f"{version}-{api_steps}"
        install(
            python, wheel("core", version, place, api_steps=api_steps), wheel("registry", version, place / "registry")
        )
        [row] = json.loads(run(python, "-m", "pipezoo", "plugins", "--json").stdout)
        return row, run(python, "-c", LOAD, str(model))

    return ask


def parts():
    return Version(NOW).release


def test_a_patch_serves_the_plugins_of_its_minor_version(upgraded, tiny_gguf):
    """Also where it has the next API_VERSION: the one before is accepted."""
    major, minor, patch = parts()
    row, answer = upgraded(f"{major}.{minor}.{patch + 1}", tiny_gguf, api_steps=1)
    assert (row["state"], row["reason"]) == ("available", None)
    assert answer.stdout == "5 tokens\n", answer.stderr


def test_an_api_version_that_is_forgotten_is_an_error_that_says_so(upgraded, tiny_gguf):
    major, minor, patch = parts()
    row, answer = upgraded(f"{major}.{minor}.{patch + 2}", tiny_gguf, api_steps=2)
    assert row["state"] == "available"  # only its module knows its API_VERSION
    assert "IncompatiblePluginError: plugin 'pipezoo-llama' was not made for this version" in answer.stderr
    assert "pip install --upgrade" in answer.stderr


def test_a_plugin_that_requires_an_older_core_is_an_incompatible_row(upgraded, tiny_gguf):
    """Before anything of it is imported."""
    following = f"{VERSION['next_breaking'](NOW)}.0"
    row, answer = upgraded(following, tiny_gguf)
    assert row["state"] == "incompatible"
    assert f"but pipezoo-core {following} is installed" in row["reason"]
    assert "pip install --upgrade" in row["cure"]
    assert "IncompatiblePluginError" in answer.stderr
