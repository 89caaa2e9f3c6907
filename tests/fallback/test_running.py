"""What the fallback has of core: fewer bits, adapters, preemption, any attention and linear backend, one device."""

import pytest
import torch
from fallback.served import PROMPTS, assert_equal_logits, load_served, make_reference
from lora.peft_adapters import merged, save_adapter
from tiny_models import logits_of

from pipezoo_core.config import LoRAConfig
from pipezoo_core.layers import Linear

TYPE = "qwen3"


@pytest.fixture(scope="module")
def reference():
    return make_reference(TYPE)


@pytest.mark.parametrize("settings", [{"linear": "torch"}, {"attention": "paged"}, {"attention": "reference"}])
def test_backends(settings, reference, tmp_path):
    assert_equal_logits(reference, load_served(reference, tmp_path, **settings), prompts=PROMPTS[:2])


def test_8_bits(reference, tmp_path):
    """Each weight is off by half a step of its group's scale at most; the logits by a few percent."""
    model = load_served(reference, tmp_path, encoding="int8")
    layers = [layer for layer in model.module.modules() if isinstance(layer, Linear)]
    assert len(layers) == 7  # of each of two layers q, k and v in one, the output, and the last of the gated; the head
    assert all(layer._product is not None for layer in layers)
    for prompt, logits in zip(PROMPTS, logits_of(model, PROMPTS), strict=True):
        with torch.no_grad():
            expected = reference(input_ids=torch.tensor([prompt]), use_cache=False).logits[0]
        error = (logits - expected).norm() / expected.norm()
        assert 1e-6 < error < 0.05


def test_adapters_equal_merged(reference, tmp_path):
    save_adapter(reference, tmp_path / "adapter", target_modules=["q_proj", "v_proj", "down_proj"])
    lora = LoRAConfig(lora_paths=[f"one={tmp_path / 'adapter'}"])
    model = load_served(reference, tmp_path, lora=lora)
    with_adapter = merged(reference, tmp_path / "adapter")
    loras = ["one", None, "one", None]
    for prompt, name, logits in zip(PROMPTS, loras, logits_of(model, PROMPTS, 7, loras), strict=True):
        with torch.no_grad():
            expected = (with_adapter if name else reference)(input_ids=torch.tensor([prompt])).logits[0]
        assert (logits - expected).abs().max() < 1e-3 * expected.abs().max()
