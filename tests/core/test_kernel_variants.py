"""The kernels for every set of instructions that this CPU has, beside those that it takes and all tests run."""

import subprocess
import sys
from pathlib import Path

import pytest
from kernels_here import needs_kernels

from pipezoo_core.native import variants

FILES = (
    "core/test_attention.py", "core/test_e4m3.py", "core/test_experts.py", "core/test_latent_heads.py",
    "core/test_linear.py", "core/test_delta_rule.py", "core/test_memory.py", "core/test_quantized.py",
    "core/test_recording.py",
    "core/test_router.py", "core/test_quantized_checkpoints.py", "core/test_short_convolution.py",
    "core/test_selective_scan.py",
    "core/test_stored_weights.py",
    "llama/test_llama_logits.py", "lora/test_lora_layers.py", "registry/test_quantize.py",
)  # fmt: skip
OF_BFLOAT16 = FILES[:6]
"""Which tests see whether there are instructions for bfloat16."""
HIDDEN = {"avx512_vnni": ("avx512_bf16", OF_BFLOAT16), "avx2": ("avx512", FILES)}
"""What a CPU lacks that takes them, by how the names begin, and the tests that see it."""
WITHOUT = """
import sys
import pytest, torch
variant, hidden, *options = sys.argv[1:]
capabilities = torch.cpu.get_capabilities()
less = {name: False if name.startswith(hidden) else value for name, value in capabilities.items()}
torch.cpu.get_capabilities = lambda: less
from pipezoo_core.native import NativeKernels, variants
assert variants.VARIANT == variant
assert NativeKernels(torch.device("cpu"), torch.bfloat16).obstacle is None
sys.exit(pytest.main(options))
"""


def is_passed_over(variant):
    """Whether this CPU takes kernels for more instructions."""
    names = list(variants.INSTRUCTIONS)
    return names.index(variants.VARIANT) < names.index(variant)


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize("variant", HIDDEN)
def test_their_own_tests(variant):
    if not is_passed_over(variant):
        pytest.skip(f"all tests are those of {variants.VARIANT}")
    hidden, files = HIDDEN[variant]
    tests = [str(Path(__file__).parents[1] / name) for name in files]
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    command = [sys.executable, "-c", WITHOUT, variant, hidden, *options, *tests]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


def test_they_are_all_listed():
    assert list(HIDDEN) == list(variants.INSTRUCTIONS)[1:]
