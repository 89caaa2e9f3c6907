"""Logits with adapters against those of peft's merged model, with and without adapters in one batch."""

import shutil
from pathlib import Path

import pytest
import torch
from distributed.ranks import loaded_on_ranks
from lora.peft_adapters import merged, save_adapter
from safetensors.torch import load_file, save_file
from tiny_models import TINY_LLAMA, load_model, logits_of, make_llama, randomize
from transformers import MistralConfig, MistralForCausalLM, MptConfig, MptForCausalLM

import pipezoo_llama.weight_adapters
import pipezoo_mistral.weight_adapters
import pipezoo_replit.weight_adapters
from pipezoo_core.config import LoRAConfig
from pipezoo_llama.model import LlamaPipelineModel
from pipezoo_mistral.model import MistralPipelineModel
from pipezoo_replit.huggingface_config import read_huggingface_config
from pipezoo_replit.model import MptPipelineModel

pytestmark = pytest.mark.slow

PROMPTS = [[5, 9, 2, 7, 7, 1], list(range(1, 41)), [3], [(7 * i) % 99 for i in range(30)], [8, 8], [5, 9, 2, 7, 7, 1]]
LORAS = ["one", None, "two", "one", "two", None]

FAMILIES = {
    "llama": (
        lambda: make_llama(attention_bias=True),
        LlamaPipelineModel,
        pipezoo_llama.weight_adapters.adapt_safetensors,
        {"target_modules": ["q_proj", "down_proj"], "rank_pattern": {"layers.1.self_attn.q_proj": 2}},
    ),
    "mistral": (
        lambda: randomize(MistralForCausalLM(MistralConfig(**TINY_LLAMA, sliding_window=12, head_dim=20))),
        MistralPipelineModel,
        pipezoo_mistral.weight_adapters.adapt_safetensors,
        {"target_modules": ["v_proj", "up_proj"], "alpha_pattern": {r"model\.layers\.\d+\.mlp\.up_proj": 11}},
    ),
    "mpt": (
        lambda: randomize(MptForCausalLM(MptConfig(vocab_size=99, d_model=48, n_heads=4, n_layers=3, max_seq_len=99))),
        MptPipelineModel,
        pipezoo_replit.weight_adapters.adapt_safetensors,
        {"target_modules": ["Wqkv"], "layers_to_transform": [1, 2]},
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """A family's reference for each adapter, what pipezoo's model is loaded from, and the adapters' paths."""
    make, model_class, adapt, config = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    base = make()
    base.save_pretrained(folder)
    save_adapter(base, folder / "one", r=5)
    save_adapter(base, folder / "two", r=3, seed=1, use_rslora=request.param == "mpt", **config)
    references = {None: base, **{name: merged(base, folder / name) for name in ("one", "two")}}
    huggingface_config = base.config
    if request.param == "mpt":
        huggingface_config = read_huggingface_config(base.config.to_dict())

    model = (model_class, folder, huggingface_config, adapt)
    return references, model, [f"{name}={folder / name}" for name in ("one", "two")]


def assert_equals_merged(model, references, prompts=PROMPTS, loras=LORAS, chunk=None):
    for prompt, lora, logits in zip(prompts, loras, logits_of(model, prompts, chunk, loras), strict=True):
        with torch.no_grad():
            expected = references[lora](torch.tensor([prompt])).logits[0]
        assert (logits - expected).abs().max() < 1e-4
        assert torch.equal(logits.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("chunk", [None, 7, 1])
@pytest.mark.parametrize("linear", ["torch", "auto"])
def test_a_mixed_batch_equals_merged_models(family, linear, chunk):
    references, model, paths = family
    loaded = load_model(*model, lora=LoRAConfig(lora_paths=paths, max_num_loras=3), linear=linear)
    assert_equals_merged(loaded, references, chunk=chunk)


@pytest.mark.parametrize("num_ranks", [2, 4])  # of which four have two key/value heads of llama and mistral
def test_on_several_ranks(family, num_ranks, tmp_path):
    references, model, paths = family
    lora = LoRAConfig(lora_paths=paths, max_num_loras=2)
    with loaded_on_ranks(num_ranks, tmp_path / "ranks", *model, lora=lora) as divided:
        for chunk in (None, 7):
            assert_equals_merged(divided, references, chunk=chunk)


def test_adapters_take_turns_in_a_slot_of_several_ranks(family, tmp_path):
    references, model, paths = family
    lora = LoRAConfig(lora_paths=paths[:1], max_num_loras=1, max_lora_rank=7)
    with loaded_on_ranks(2, tmp_path / "ranks", *model, lora=lora) as divided:
        divided.lora_manager.load_adapter(paths[1])
        for name in ("one", "two", None, "one"):
            assert_equals_merged(divided, references, PROMPTS[:2], [name, name])


@pytest.mark.parametrize("family", ["mpt"], indirect=True)
def test_an_adapter_in_the_names_of_replits_first_model(family, tmp_path):
    """The plugin's function that renames a checkpoint's weights renames an adapter's, too."""
    _, arguments, paths = family
    model = load_model(*arguments, lora=LoRAConfig(lora_paths=paths, max_num_loras=3))
    (folder,) = {Path(path.partition("=")[2]).parent for path in paths}
    shutil.copytree(folder / "one", tmp_path, dirs_exist_ok=True)
    names = {"ffn.up_proj": "mlp.mlp_up", "ffn.down_proj": "mlp.mlp_down"}
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    for ours, replits in names.items():
        assert any(ours in name for name in tensors)
        tensors = {name.replace(ours, replits): tensor for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    model.lora_manager.load_adapter(f"replit={tmp_path}")
    expected, found = logits_of(model, [PROMPTS[1]] * 2, loras=["one", "replit"])
    torch.testing.assert_close(found, expected)


def test_adapters_matter(family):
    """Without it the oracle above could not fail."""
    references, *_ = family
    tokens = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        base, one, two = (references[name](tokens).logits for name in (None, "one", "two"))
    assert all((a - b).abs().max() > 0.1 for a, b in ((base, one), (base, two), (one, two)))
