"""Logits on several ranks against those on one, for all three plugins."""

import pytest
import torch
from distributed.ranks import loaded_on_ranks
from replit.mpt_reference import Reference
from safetensors.torch import save_file
from tiny_models import TINY_LLAMA, load_model, logits_of, make_llama, randomize
from transformers import MistralConfig, MistralForCausalLM

from pipezoo_core.config import KVCacheConfig
from pipezoo_core.native import NativeKernels
from pipezoo_llama.model import LlamaPipelineModel
from pipezoo_llama.weight_adapters import adapt_safetensors as adapt_llama
from pipezoo_mistral.model import MistralPipelineModel
from pipezoo_mistral.weight_adapters import adapt_safetensors as adapt_mistral
from pipezoo_replit.huggingface_config import read_huggingface_config
from pipezoo_replit.model import MptPipelineModel
from pipezoo_replit.weight_adapters import adapt_safetensors as adapt_mpt

pytestmark = pytest.mark.slow

NATIVE = pytest.mark.skipif(
    NativeKernels(torch.device("cpu"), torch.float32).obstacle is not None, reason="pipezoo-kernels cannot be used here"
)
PROMPTS = [[5, 9, 2, 7, 7, 1], list(range(1, 61)), [3], [(7 * i) % 99 for i in range(97)]]
GROUPED = {"attn_type": "grouped_query_attention", "kv_n_heads": 2}
# Per plugin: name -> number of ranks, config.
LLAMA = {
    "grouped": (2, {}),
    "three_kv_heads_of_nine": (2, {"hidden_size": 36, "num_attention_heads": 9, "num_key_value_heads": 3}),
    "multi_query": (2, {"num_key_value_heads": 1}),
    "two_kv_heads_on_four": (4, {}),
    "three_ranks": (3, {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3}),
    "biases": (2, {"attention_bias": True, "mlp_bias": True}),
    "tied": (2, {"tie_word_embeddings": True}),
    "head_dim": (2, {"head_dim": 20}),
}
MISTRAL = {
    "window": (2, {"sliding_window": 12}),
    "tied": (2, {"tie_word_embeddings": True}),
    "multi_query": (2, {"sliding_window": 12, "num_key_value_heads": 1}),
}
MPT = {
    "default": (2, {}),
    "slopes_not_a_power_of_two": (2, {"n_heads": 6}),
    "bias": (2, {"no_bias": False}),
    "clip": (2, {"attn_config": {"clip_qkv": 0.5}}),
    "qk_ln": (2, {"no_bias": False, "attn_config": {"qk_ln": True}}),
    "grouped_and_normalized": (2, {"n_heads": 6, "attn_config": {**GROUPED, "qk_ln": True}}),
    "two_kv_heads_on_four": (4, {"n_heads": 4, "attn_config": {**GROUPED, "qk_ln": True}}),
    "multi_query_normalized": (2, {"attn_config": {"attn_type": "multiquery_attention", "qk_ln": True}}),
    "learned_positions": (2, {"attn_config": {"alibi": False}}),
    "untied_and_scaled": (2, {"tie_word_embeddings": False, "logit_scale": "inv_sqrt_d_model"}),
}


def make_mpt(folder, **changes):
    raw = {"vocab_size": 99, "d_model": 48, "n_heads": 4, "n_layers": 2, "max_seq_len": 256, **changes}
    weights = Reference(raw).weights
    save_file({name: torch.tensor(values).float() for name, values in weights.items()}, folder / "model.safetensors")
    return MptPipelineModel, folder, read_huggingface_config(raw), adapt_mpt


def make(plugin, folder, **changes):
    folder.mkdir()
    if plugin == "mpt":
        return make_mpt(folder, **changes)
    if plugin == "llama":
        reference, model_class, adapter = make_llama(**changes), LlamaPipelineModel, adapt_llama
    else:
        reference = randomize(MistralForCausalLM(MistralConfig(**{**TINY_LLAMA, **changes})))
        model_class, adapter = MistralPipelineModel, adapt_mistral
    reference.save_pretrained(folder)
    return model_class, folder, reference.config, adapter


def assert_equal_logits(num_ranks, tmp_path, model, **settings):
    alone = load_model(*model, **settings)
    with loaded_on_ranks(num_ranks, tmp_path / "ranks", *model, **settings) as divided:
        for chunk in (None, 7, 1):
            pairs = zip(logits_of(divided, PROMPTS, chunk), logits_of(alone, PROMPTS, chunk), strict=True)
            for found, expected in pairs:
                assert (found - expected).abs().max() < 1e-4
                assert torch.equal(found.argmax(-1), expected.argmax(-1))
        return divided, alone


@pytest.mark.parametrize(
    ("plugin", "name"), [(p, n) for p, of in (("llama", LLAMA), ("mistral", MISTRAL), ("mpt", MPT)) for n in of]
)
def test_logits_equal_those_of_one_rank(plugin, name, tmp_path):
    num_ranks, changes = {"llama": LLAMA, "mistral": MISTRAL, "mpt": MPT}[plugin][name]
    assert_equal_logits(num_ranks, tmp_path, make(plugin, tmp_path / "model", **changes))


@NATIVE
@pytest.mark.parametrize(
    ("plugin", "changes"),
    [
        ("llama", {"head_dim": 32, "intermediate_size": 64}),
        ("llama", {"head_dim": 32, "tie_word_embeddings": True, "num_key_value_heads": 1}),
        ("mistral", {"head_dim": 32, "sliding_window": 12}),
        ("mpt", {"d_model": 128}),
    ],
)
def test_logits_of_native_kernels(plugin, changes, tmp_path):
    """The kernels want heads and pages of 32."""
    settings = {
        "attention": "native",
        "linear": "native",
        "kv_cache": KVCacheConfig(page_size=32, kv_cache_memory=2**22),
    }
    assert_equal_logits(2, tmp_path, make(plugin, tmp_path / "model", **changes), **settings)
