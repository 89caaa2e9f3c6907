"""Separately installable, shown with wheels in an environment that has none of pipezoo."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MEMBERS = {
    "pipezoo_core": "core",
    "pipezoo": "registry",
    "pipezoo_llama": "plugins/llama",
    "pipezoo_mistral": "plugins/mistral",
    "pipezoo_replit": "plugins/replit",
}
LOAD = """
import sys
from pipezoo import registry
llm = registry.load(sys.argv[1], dtype="float32", device="cpu", kv_cache_memory="4MiB")
print(len(llm.generate("hello", max_new_tokens=5, ignore_eos=True)[0].tokens), "tokens")
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheels")
    for member in MEMBERS.values():
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), member]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return {path.name.split("-")[0]: path for path in folder.glob("*.whl")}


@pytest.fixture(scope="module")
def clean_python(tmp_path_factory):
    """A new environment that borrows third-party packages through links, and nothing of pipezoo."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=True, symlinks=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", query], check=True, capture_output=True, text=True).stdout.strip())
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        ours = "pipezoo" in entry.name or entry.name.startswith(("_editable", "__editable"))
        if not ours and not (site / entry.name).exists():
            (site / entry.name).symlink_to(entry)
    return python


def run(python, *arguments):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        [str(python), *arguments], capture_output=True, text=True, env=environment, cwd=python.parent, check=False
    )


def install(python, *wheels):
    result = run(python, "-m", "pip", "install", "--no-deps", "--no-index", *map(str, wheels))
    assert result.returncode == 0, result.stderr


def test_a_plugin_is_one_pip_install_away(wheels, clean_python, tiny_gguf):
    assert set(wheels) == set(MEMBERS)
    assert "No module named 'pipezoo" in run(clean_python, "-c", "import pipezoo").stderr
    install(clean_python, wheels["pipezoo_core"], wheels["pipezoo"])
    assert "No plugins are installed" in run(clean_python, "-m", "pipezoo", "plugins").stdout
    without = run(clean_python, "-c", LOAD, str(tiny_gguf))
    assert "PluginNotFoundError: no plugin for model_type 'llama' (installed: none)" in without.stderr
    assert "pip install pipezoo-llama" in without.stderr
    install(clean_python, wheels["pipezoo_llama"])
    with_plugin = run(clean_python, "-c", LOAD, str(tiny_gguf))
    assert with_plugin.stdout == "5 tokens\n", with_plugin.stderr
    install(clean_python, wheels["pipezoo_mistral"], wheels["pipezoo_replit"])
    listed = run(clean_python, "-m", "pipezoo", "plugins").stdout
    assert all(name in listed for name in ("llama", "mistral", "mpt"))


def test_wheels_carry_their_types_and_no_tests(wheels):
    import zipfile

    for name, path in wheels.items():
        files = zipfile.ZipFile(path).namelist()
        assert f"{name}/py.typed" in files
        assert not any("test" in file for file in files if not file.startswith("pipezoo_core/testing"))
