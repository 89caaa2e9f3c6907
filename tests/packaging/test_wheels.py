"""Separately installable, shown with wheels in an environment that has none of pipezoo."""

import email
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from clean_python import install, make_clean_python, run

from pipezoo_core.native.variants import INSTRUCTIONS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MEMBERS = {
    "pipezoo_core": "core",
    "pipezoo": "registry",
    "pipezoo_deepseek": "plugins/deepseek",
    "pipezoo_gemma": "plugins/gemma",
    "pipezoo_gpt": "plugins/gpt",
    "pipezoo_gpt_oss": "plugins/gpt_oss",
    "pipezoo_granite": "plugins/granite",
    "pipezoo_lfm2": "plugins/lfm2",
    "pipezoo_llama": "plugins/llama",
    "pipezoo_mistral": "plugins/mistral",
    "pipezoo_nemotron": "plugins/nemotron",
    "pipezoo_olmo": "plugins/olmo",
    "pipezoo_phi": "plugins/phi",
    "pipezoo_qwen": "plugins/qwen",
    "pipezoo_replit": "plugins/replit",
    "pipezoo_transformers": "plugins/transformers",
}
KERNELS = "pipezoo_kernels"
LOAD = """
import sys
from pipezoo import registry
llm = registry.load(sys.argv[1], dtype="float32", device="cpu", kv_cache_memory="4MiB")
print(len(llm.generate("hello", max_new_tokens=5, ignore_eos=True)[0].tokens), "tokens")
"""


def build(member, folder):
    """Writes the sdist of a member, and the wheel that is built from it."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), member]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def by_name(folder, pattern):
    return {path.name.split("-")[0]: path for path in folder.glob(pattern)}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheels")
    for member in MEMBERS.values():
        build(member, folder)
    return folder


@pytest.fixture(scope="module")
def wheels(built):
    return by_name(built, "*.whl")


@pytest.fixture(scope="module")
def built_kernels(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler")
    folder = tmp_path_factory.mktemp("kernels")
    build("kernels", folder)
    return folder


@pytest.fixture(scope="module")
def clean_python(tmp_path_factory):
    return make_clean_python(tmp_path_factory.mktemp("clean"))


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


def check_what_pip_shows(folder, names):
    """The license is the repository's, and a reader of the package's page can follow what its README links to."""
    license_text = (ROOT / "LICENSE").read_bytes()
    wheels, sdists = by_name(folder, "*.whl"), by_name(folder, "*.tar.gz")
    assert set(wheels) == set(sdists) == set(names)
    for name in names:
        with zipfile.ZipFile(wheels[name]) as wheel:
            info = next(file for file in wheel.namelist() if file.endswith(".dist-info/METADATA")).rpartition("/")[0]
            metadata = email.message_from_bytes(wheel.read(f"{info}/METADATA"))
            assert wheel.read(f"{info}/licenses/LICENSE") == license_text
        with tarfile.open(sdists[name]) as sdist:
            root = sdists[name].name.removesuffix(".tar.gz")
            assert sdist.extractfile(f"{root}/LICENSE").read() == license_text
        assert metadata["License-Expression"] == "Apache-2.0"
        assert metadata["Keywords"]
        assert "Typing :: Typed" in metadata.get_all("Classifier")
        text = metadata.get_payload()
        assert text.startswith(f"# {name.replace('_', '-')}\n")
        assert not [target for target in re.findall(r"\]\(([^)]+)\)", text) if not target.startswith("https://")]


def test_what_pip_shows(built):
    check_what_pip_shows(built, MEMBERS)


def check_what_pypi_takes(folder):
    """Its own check of what is uploaded finds nothing, neither errors nor warnings."""
    command = [sys.executable, "-m", "twine", "--no-color", "check", "--strict", *map(str, folder.iterdir())]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.count("PASSED") == len([*folder.iterdir()])


def test_what_pypi_takes(built):
    check_what_pypi_takes(built)


def sections_of(elf):
    """The names of the sections of a 64-bit ELF file."""
    start, size, count, names = struct.unpack_from("<Q10xHHH", elf, 40)
    headers = [struct.unpack_from("<I20xQQ", elf, start + i * size) for i in range(count)]
    _, offset, length = headers[names]
    text = elf[offset : offset + length]
    return {text[at : text.index(b"\0", at)].decode() for at, _, _ in headers}


def test_the_kernels(built_kernels):
    """One wheel for all versions of Python, built from its sdist, without what only a debugger reads."""
    check_what_pip_shows(built_kernels, [KERNELS])
    check_what_pypi_takes(built_kernels)
    (path,) = built_kernels.glob("*.whl")
    assert "-cp311-abi3-" in path.name
    with zipfile.ZipFile(path) as wheel:
        modules = {name: wheel.read(name) for name in wheel.namelist() if name.endswith(".so")}
    assert set(modules) == {f"{KERNELS}/_{kind}.abi3.so" for kind in INSTRUCTIONS}
    for module in modules.values():
        found = sections_of(module)
        assert ".dynsym" in found
        assert not [name for name in found if name == ".symtab" or name.startswith(".debug")]


def test_wheels_carry_their_types_and_no_tests(wheels):
    for name, path in wheels.items():
        files = zipfile.ZipFile(path).namelist()
        assert f"{name}/py.typed" in files
        meant = ("pipezoo_core/testing", "pipezoo/authoring/templates")
        assert not any("test" in file for file in files if not file.startswith(meant))
        assert ("pipezoo/serve/page/static/index.html" in files) == (name == "pipezoo")
