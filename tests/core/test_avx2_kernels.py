"""The kernels for CPUs with AVX2, on a CPU that has AVX-512 as well and takes the others everywhere else."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipezoo_core.native import NativeKernels, variants

FILES = (
    "core/test_attention.py", "core/test_delta_rule.py", "core/test_e4m3.py", "core/test_experts.py",
    "core/test_latent_heads.py",
    "core/test_linear.py", "core/test_memory.py", "core/test_quantized.py", "core/test_recording.py",
    "core/test_router.py", "core/test_quantized_checkpoints.py", "core/test_short_convolution.py",
    "core/test_stored_weights.py",
    "llama/test_llama_logits.py", "lora/test_lora_layers.py", "registry/test_quantize.py",
)  # fmt: skip
TESTS = [Path(__file__).parents[1] / name for name in FILES]
WITHOUT_AVX512 = """
import sys
import pytest, torch
capabilities = torch.cpu.get_capabilities()
less = {name: False if name.startswith("avx512") else value for name, value in capabilities.items()}
torch.cpu.get_capabilities = lambda: less
from pipezoo_core.native import NativeKernels, variants
assert variants.VARIANT == "avx2"
assert NativeKernels(torch.device("cpu"), torch.bfloat16).obstacle is None
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(variants.VARIANT == "avx2", reason="they are this CPU's, and all tests are theirs")
@pytest.mark.skipif(NativeKernels(torch.device("cpu"), torch.float32).obstacle is not None, reason="no kernels here")
def test_their_own_tests():
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    command = [sys.executable, "-c", WITHOUT_AVX512, *options, *map(str, TESTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
