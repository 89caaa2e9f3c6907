"""Adapters trained on fused layers, for a module that has these layers apart: Phi-3's checkpoint in Llama's module."""

import pytest
import torch
from lora.peft_adapters import merged, save_adapter
from tiny_models import TINY_LLAMA, load_model, logits_of, randomize
from transformers import LlamaConfig, Phi3Config, Phi3ForCausalLM

from pipezoo_core.config import LoRAConfig
from pipezoo_core.errors import UnsupportedAdapterError
from pipezoo_llama.model import LlamaPipelineModel

PROMPTS = [[5, 9, 2, 7, 7, 1], list(range(1, 41)), [3]]
PARTS = {
    "qkv_proj": {"q_proj": slice(0, 32), "k_proj": slice(32, 48), "v_proj": slice(48, 64)},
    "gate_up_proj": {"gate_proj": slice(0, 56), "up_proj": slice(56, 112)},
}


def divided(tensors, _config):
    """Gives the rows of fused layers to the layers that they are of."""
    found = {}
    for name, tensor in tensors.items():
        kind = name.split(".")[-2]
        parts = PARTS.get(kind, {kind: slice(0, tensor.shape[0])})
        found |= {name.replace(kind, part): tensor.rows(rows) for part, rows in parts.items()}
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model with fused layers, and a folder with it and two adapters of it."""
    folder = tmp_path_factory.mktemp("phi3")
    sizes = {**TINY_LLAMA, "tie_word_embeddings": False}
    base = randomize(Phi3ForCausalLM(Phi3Config(**sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2)))
    base.save_pretrained(folder)
    save_adapter(base, folder / "one", r=5)
    save_adapter(base, folder / "two", r=3, seed=1, target_modules=["qkv_proj"])
    return base, folder, LlamaConfig(**sizes, rms_norm_eps=base.config.rms_norm_eps)


@torch.inference_mode()
def test_logits_equal_those_of_merged_weights(trained):
    base, folder, config = trained
    lora = LoRAConfig(
        lora_paths=[f"{name}={folder / name}" for name in ("one", "two")], max_num_loras=2, max_lora_rank=5
    )
    model = load_model(LlamaPipelineModel, folder, config, divided, lora=lora)
    loras = ["one", None, "two"]
    found = logits_of(model, PROMPTS, loras=loras)
    references = {None: base, **{name: merged(base, folder / name) for name in ("one", "two")}}
    for prompt, name, logits in zip(PROMPTS, loras, found, strict=True):
        expected = references[name](torch.tensor([prompt])).logits[0]
        torch.testing.assert_close(logits, expected, atol=2e-4, rtol=0)


def test_a_layer_that_nothing_divides_is_refused(trained):
    _, folder, config = trained
    model = load_model(LlamaPipelineModel, folder, config, divided, lora=LoRAConfig(max_num_loras=1, max_lora_rank=5))
    model.lora_manager._rename = dict
    with pytest.raises(UnsupportedAdapterError, match=r"layers\.0\.self_attn\.qkv_proj is no linear layer"):
        model.lora_manager.load_adapter(str(folder / "one"))
