"""What `pipezoo new-plugin` writes is installed, listed, and run, and fails the checks that need its author's model."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import make_llama

from pipezoo_core.testing import CHECKS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WITHOUT_A_MODEL = {"overrides", "discovery", "rediscovery"}
RUN = """
import sys
from pipezoo import registry
with registry.load(sys.argv[1], dtype="float32", device="cpu", kv_cache_memory="4MiB") as llm:
    print(llm.generate([[1, 2, 3]], max_new_tokens=5, temperature=0.0, ignore_eos=True)[0].tokens)
"""
IS_A_LLAMA = """
from transformers import LlamaConfig, LlamaForCausalLM
from pipezoo_myarch.huggingface_config import MyarchHuggingFaceConfig


class Reference(LlamaForCausalLM):
    config_class = MyarchHuggingFaceConfig


TestMyarch.reference = Reference
"""


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """Runs a module of Python in a folder, with core, the registry and a new plugin installed as their users do it."""
    folder = tmp_path_factory.mktemp("outside")
    environment = {
        "HOME": str(folder),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(folder / "site"),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }

    def run(*arguments, cwd=folder):
        command = [sys.executable, "-m", *map(str, arguments)]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=400)

    def install(*members):
        done = run("pip", "install", "--no-deps", "--no-build-isolation", "--target", folder / "site", *members)
        assert done.returncode == 0, done.stderr

    install(ROOT / "core", ROOT / "registry")
    written = run("pipezoo", "new-plugin", "myarch")
    assert written.returncode == 0, written.stderr
    install(folder / "pipezoo-myarch")
    return run


def failures(run, *arguments):
    """The names of the checks that fail when the plugin's own tests run."""
    home = Path(run("site", "--user-base").stdout.strip()).parent
    ended = run("pytest", "-q", "--tb=no", "-p", "no:cacheprovider", *arguments, cwd=home / "pipezoo-myarch")
    assert "error" not in ended.stdout, ended.stdout
    return {*re.findall(r"^FAILED \S+::test_(\w+)", ended.stdout, re.M)}, ended.stdout


def test_it_is_listed(outside):
    assert re.search(r"myarch .*pipezoo-myarch .*available", outside("pipezoo", "plugins").stdout)


def test_it_runs(outside, tmp_path):
    """A plain decoder is a Llama under another name."""
    model = make_llama()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    named = {**config, "model_type": "myarch", "architectures": ["MyarchForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(named))
    ended = subprocess_of(outside, tmp_path)
    assert ended.returncode == 0, ended.stderr


def test_it_fails_the_checks_that_need_the_authors_model(outside):
    failed, output = failures(outside)
    assert failed == {check.name for check in CHECKS} - WITHOUT_A_MODEL, output
