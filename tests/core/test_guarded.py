"""Kernels read and write nothing beyond their tensors, whatever the sizes: see `guarded`."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipezoo_core.native import NativeKernels

SCRIPT = Path(__file__).with_name("guarded.py")


@pytest.mark.slow
@pytest.mark.skipif(NativeKernels(torch.device("cpu"), torch.float32).obstacle is not None, reason="no kernels here")
@pytest.mark.parametrize("what", ["attention", "experts", "layers", "recurrence"])
def test_nothing_beyond_is_touched(what):
    done = subprocess.run([sys.executable, SCRIPT, what], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
