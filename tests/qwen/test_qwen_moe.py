"""Qwen2-MoE and Qwen3-MoE against transformers on the same weights, for everything that their configs can express."""

import pytest
import torch
from families import (
    NATIVE,
    assert_adapters_equal_merged,
    assert_equal_greedy_tokens,
    assert_equal_logits,
    assert_equal_on_ranks,
    assert_matters,
    load_gguf,
    save,
    why_not_replayed,
)
from gguf_files import write_gguf
from lora.peft_adapters import save_adapter
from qwen.tiny_qwen import ARCHITECTURES, EXPERTS, MIXTURES, make, saved
from tiny_models import load_model

from pipezoo import registry
from pipezoo_core.config import LoRAConfig
from pipezoo_core.errors import UnsupportedAdapterError, UnsupportedModelError
from pipezoo_core.native import NativeKernels
from pipezoo_core.request import TextGenerationRequest
from pipezoo_qwen.config import QwenConfig

pytestmark = pytest.mark.matrix

HAS_KERNELS = NativeKernels(torch.device("cpu"), torch.float32).obstacle is None
BOTH = {
    "default": {},
    "normalized": {"norm_topk_prob": True},
    "one_expert_per_token": {"num_experts_per_tok": 1},
    "all_experts": {"num_experts_per_tok": 6, "norm_topk_prob": True},
    "every_other_layer": {"decoder_sparse_step": 2},
    "plain_layers": {"mlp_only_layers": [0, 2]},
    "no_layer": {"mlp_only_layers": [0, 1, 2]},
    "width": {"moe_intermediate_size": 40},
    "activation": {"hidden_act": "gelu"},
    "tied": {"tie_word_embeddings": True},
    "multi_query": {"num_key_value_heads": 1},
    "head_dim": {"head_dim": 20},
    "window": {"use_sliding_window": True, "sliding_window": 12},
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
}
QWEN2 = {
    "no_bias": {"qkv_bias": False},
    "shared_width": {"shared_expert_intermediate_size": 24},
    "window_of_first_layers": {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1},
}
QWEN3 = {"attention_bias": {"attention_bias": True}}
CONFIGS = {
    **{f"qwen2_moe-{name}": ("qwen2_moe", changes) for name, changes in {**BOTH, **QWEN2}.items()},
    **{f"qwen3_moe-{name}": ("qwen3_moe", changes) for name, changes in {**BOTH, **QWEN3}.items()},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name, tmp_path):
    family, changes = CONFIGS[name]
    reference = make(family, **changes)
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path)))


@pytest.mark.skipif(not HAS_KERNELS, reason="pipezoo-kernels cannot be used here")
@pytest.mark.parametrize("family", MIXTURES)
def test_logits_of_native_kernels(family, tmp_path):
    sizes = {"head_dim": 32, "moe_intermediate_size": 32, "intermediate_size": 64}
    reference = make(family, **sizes, decoder_sparse_step=2)
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path), **NATIVE))
    assert why_not_replayed(tmp_path, dtype="float32") is None


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("name", ["normalized", "one_expert_per_token", "activation", "window"])
def test_switches_matter(family, name):
    assert_matters(make(family), make(family, **BOTH[name]))


@pytest.mark.parametrize("family", MIXTURES)
def test_greedy_tokens_equal_transformers(family, tiny_folder, tmp_path):
    reference = make(family, norm_topk_prob=True)
    page = 8 * 2 * 3 * 2 * 4  # 8 tokens: keys and values of 3 layers, 2 heads, in bytes per number of a head
    few_pages = 16 * page * reference.model.layers[0].self_attn.head_dim
    assert_equal_greedy_tokens(reference, save(reference, tmp_path, tiny_folder), few_pages=few_pages)


@pytest.mark.slow
@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_equal_transformers(family, num_ranks, tmp_path):
    reference = make(family)
    assert_equal_on_ranks(reference, saved(reference, tmp_path / "model"), tmp_path, num_ranks)


@pytest.mark.parametrize("family", MIXTURES)
def test_adapters_of_the_attention_equal_merged_models(family, tmp_path):
    reference, targets = make(family), ["q_proj", "v_proj", "o_proj"]
    model = saved(reference, tmp_path / "model")
    assert_adapters_equal_merged(reference, model, tmp_path, targets=targets, target_modules=["k_proj"])


def test_an_adapter_of_the_router_is_refused_by_name(tmp_path):
    reference = make("qwen3_moe")
    save_adapter(reference, tmp_path / "one")  # of all that peft finds
    model = saved(reference, tmp_path / "model")
    with pytest.raises(UnsupportedAdapterError, match=r"layers\.0\.mlp\.gate is no linear layer"):
        load_model(*model, lora=LoRAConfig(lora_paths=[f"one={tmp_path / 'one'}"]))


@pytest.mark.parametrize("family", MIXTURES)
def test_a_gguf_file(family, tmp_path):
    reference = make(family, norm_topk_prob=family == "qwen3_moe")
    path = write_mixture(tmp_path / "m.gguf", reference)
    assert_equal_logits(reference, load_gguf(ARCHITECTURES[family], path))
    with registry.load(path, dtype="bfloat16", device="cpu", kv_cache_memory="4MiB") as llm:
        assert llm.model.huggingface_config.model_type == family


def write_mixture(path, reference):
    """As converters write it: the experts of a layer are one tensor, and the shared expert's gate is a vector."""
    name = reference.config.model_type.replace("_moe", "moe")
    sizes = {
        "expert_count": reference.config.num_experts,
        "expert_used_count": reference.config.num_experts_per_tok,
        "expert_feed_forward_length": reference.config.moe_intermediate_size,
    }
    if name == "qwen2moe":
        sizes["expert_shared_feed_forward_length"] = reference.config.shared_expert_intermediate_size
    metadata = {f"{name}.{key}": size for key, size in sizes.items()}
    return write_gguf(path, reference, name, metadata=metadata, pre="qwen2")


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_it_answers(family, dtype, tiny_folder, tmp_path):
    folder = save(make(family, head_dim=32), tmp_path, tiny_folder)
    with registry.load(folder, dtype=dtype, device="cpu", kv_cache_memory="8MiB") as llm:
        (output,) = llm.generate(TextGenerationRequest(prompt=[5, 9]), max_new_tokens=5, ignore_eos=True)
        assert len(output.tokens) == 5


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"num_experts": 2, "num_experts_per_tok": 3}, "experts cannot be chosen"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step is none"),
        ({"use_sliding_window": True, "sliding_window": 0, "max_window_layers": 9}, "does not say how many tokens"),
    ],
    ids=str,
)
def test_refused(family, said, why):
    with pytest.raises(UnsupportedModelError, match=why):
        QwenConfig.from_huggingface(ARCHITECTURES[family].huggingface_config({**EXPERTS, **said}))
