"""Adapters of Phi-3, trained on its fused layers or where these are apart, against merged weights."""

import pytest
import torch
from families import PROMPTS, expected_logits, load_gguf
from lora.peft_adapters import merged, save_adapter
from phi.test_phi_gguf import make_for_file, write
from phi.tiny_phi import ARCHITECTURES, SIZES, make, saved
from safetensors.torch import load_file, save_file
from tiny_models import load_model, logits_of
from transformers import LlamaConfig, LlamaForCausalLM

from pipezoo_core.config import LoRAConfig
from pipezoo_core.errors import UnsupportedAdapterError
from pipezoo_phi.weight_adapters import adapt_phi3

APART = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
LORA = LoRAConfig(max_num_loras=2, max_lora_rank=5)


class _Rows:
    """As much of a lazy tensor as dividing one takes."""

    def __init__(self, tensor):
        self.tensor, self.shape = tensor, tuple(tensor.shape)

    def rows(self, rows):
        return _Rows(self.tensor[rows])


def apart(reference):
    """Llama's model with the same weights, which are those of layers of their own there."""
    sizes = {key: value for key, value in SIZES.items() if not key.endswith("token_id")}
    twin = LlamaForCausalLM(LlamaConfig(**sizes, rms_norm_eps=reference.config.rms_norm_eps)).eval()
    weights = adapt_phi3({name: _Rows(tensor) for name, tensor in reference.state_dict().items()}, reference.config)
    twin.load_state_dict({name: rows.tensor for name, rows in weights.items()})
    return twin


def assert_equal(loaded, references):
    """A batch whose requests have these adapters, in turn, computes what the merged models do."""
    names = [*references, *references][: len(PROMPTS)]
    for prompt, name, found in zip(PROMPTS, names, logits_of(loaded, PROMPTS, loras=names), strict=True):
        assert (found - expected_logits(references[name], prompt)).abs().max() < 1e-4
    reference, *others = references.values()
    for other in others:
        assert (expected_logits(reference, PROMPTS[1]) - expected_logits(other, PROMPTS[1])).abs().max() > 0.1


def test_an_adapter_of_layers_apart(tmp_path):
    reference = make("phi3")
    twin = apart(reference)
    torch.testing.assert_close(expected_logits(twin, PROMPTS[0]), expected_logits(reference, PROMPTS[0]))
    save_adapter(twin, tmp_path / "all", r=5, target_modules=APART)
    save_adapter(twin, tmp_path / "some", r=3, seed=1, target_modules=["v_proj", "up_proj"])
    loaded = load_model(*saved(reference, tmp_path / "model"), lora=LORA)
    for name in ("all", "some"):
        loaded.lora_manager.load_adapter(f"{name}={tmp_path / name}")
    assert_equal(loaded, {None: reference, **{name: merged(twin, tmp_path / name) for name in ("all", "some")}})


def test_an_adapter_of_fused_layers_on_a_gguf_file(tmp_path):
    reference = make_for_file("phi3")
    save_adapter(reference, tmp_path / "all", r=5)
    loaded = load_gguf(ARCHITECTURES["phi3"], write(tmp_path, reference), lora=LORA)
    loaded.lora_manager.load_adapter(f"all={tmp_path / 'all'}")
    assert_equal(loaded, {None: reference, "all": merged(reference, tmp_path / "all")})


def test_a_part_beside_the_fused_layer_is_refused(tmp_path):
    reference = make("phi3")
    save_adapter(reference, tmp_path / "both", target_modules=["qkv_proj"])
    path = tmp_path / "both" / "adapter_model.safetensors"
    tensors = load_file(path)
    prefix = "base_model.model.model.layers.0.self_attn"
    tensors[f"{prefix}.k_proj.lora_A.weight"] = torch.ones(4, 32)
    tensors[f"{prefix}.k_proj.lora_B.weight"] = torch.ones(16, 4)
    save_file(tensors, path)
    loaded = load_model(*saved(reference, tmp_path / "model"), lora=LORA)
    with pytest.raises(UnsupportedAdapterError, match=r"is there twice"):
        loaded.lora_manager.load_adapter(str(tmp_path / "both"))
