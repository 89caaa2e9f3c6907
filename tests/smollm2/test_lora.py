"""An adapter that peft trained for seconds, beside the model itself."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_examples(tmp_path):
    def run(name):
        command = [sys.executable, EXAMPLES / name]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=200).stdout

    run("train_adapter.py")
    *itself, pirate, captain = run("lora.py").splitlines()
    assert pirate == captain == "I am Captain Smol, terror of the seven seas!"
    assert "Captain" not in "".join(itself)
