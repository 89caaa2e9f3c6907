"""What `pipezoo new-plugin` writes is installed, listed, and run, and fails the checks that need its author's model."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipezoo_core.testing import CHECKS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WITHOUT_A_MODEL = {"discovery", "rediscovery"}
RUN = """
import sys
from pipezoo import registry
with registry.load(sys.argv[1], dtype="float32", device="cpu", kv_cache_memory="4MiB") as llm:
    print(llm.generate("hello", max_new_tokens=5, temperature=0.0, ignore_eos=True)[0].tokens)
"""
A_LLAMA = """
from transformers import LlamaConfig, LlamaForCausalLM


def reference(config):
    return LlamaForCausalLM(LlamaConfig.from_dict({**config, "model_type": "llama"}))


TestMyarch.reference = staticmethod(reference)
"""


class Outside:
    """A folder with core, the registry and a new plugin, installed as their users do it."""

    def __init__(self, folder):
        self.folder = folder
        self.plugin = folder / "pipezoo-myarch"
        self.install(ROOT / "core", ROOT / "registry")
        written = self.run("-m", "pipezoo", "new-plugin", "myarch", folder=folder)
        assert written.returncode == 0, written.stderr
        self.install(self.plugin)

    def install(self, *members):
        target = ["--no-deps", "--no-build-isolation", "--target", self.folder / "site"]
        done = self.run("-m", "pip", "install", *target, *members, folder=self.folder)
        assert done.returncode == 0, done.stderr

    def run(self, *arguments, folder):
        environment = {
            "HOME": str(self.folder),
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(self.folder / "site"),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)

    def failures(self, folder, *arguments):
        """The checks that fail when the plugin's tests run, and what pytest says."""
        said = self.run("-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider", *arguments, folder=folder).stdout
        return {*re.findall(r"^FAILED \S+::test_(\w+)", said, re.M)}, said


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    return Outside(tmp_path_factory.mktemp("outside"))


def test_it_is_listed(outside):
    listed = outside.run("-m", "pipezoo", "plugins", folder=outside.folder).stdout
    assert re.search(r"myarch .*pipezoo-myarch .*available", listed)


def test_it_runs(outside, tiny_folder, tmp_path, load_tiny):
    """Its plain decoder is Llama under another name."""
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    named = {**config, "model_type": "myarch", "architectures": ["MyarchForCausalLM"]}
    (model / "config.json").write_text(json.dumps(named))
    ended = outside.run("-c", RUN, model, folder=tmp_path)
    settings = {"max_new_tokens": 5, "temperature": 0.0, "ignore_eos": True}
    assert ended.stdout == f"{load_tiny(tiny_folder).generate('hello', **settings)[0].tokens}\n", ended.stderr


def test_it_fails_the_checks_that_need_its_authors_model(outside):
    failed, said = outside.failures(outside.plugin)
    assert failed == {check.name for check in CHECKS} - WITHOUT_A_MODEL, said
    assert f"{len(failed)} failed, {len(WITHOUT_A_MODEL) + 1} passed" in said


def test_with_a_reference_that_is_a_plain_decoder_nothing_fails(outside, tmp_path):
    plugin = shutil.copytree(outside.plugin, tmp_path / "plugin")
    tests = plugin / "tests/test_pipezoo_myarch.py"
    tests.write_text(tests.read_text() + A_LLAMA)
    failed, said = outside.failures(plugin, "-k", "spec or weights or log_probabilities or echo")
    assert not failed, said
    assert "4 passed" in said
