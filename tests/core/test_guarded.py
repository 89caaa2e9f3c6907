"""Kernels read and write nothing beyond their tensors, whatever the sizes: see `guarded`."""

import subprocess
import sys
from pathlib import Path

import pytest
from kernels_here import needs_kernels

SCRIPT = Path(__file__).with_name("guarded.py")


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize("what", ["attention", "experts", "layers", "recurrence"])
def test_nothing_beyond_is_touched(what):
    done = subprocess.run([sys.executable, SCRIPT, what], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
