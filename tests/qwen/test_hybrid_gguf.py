"""GGUF files of Qwen3-Next and Qwen3.5: the logits of the transformers model that they were written from."""

from functools import partial
from types import SimpleNamespace

import gguf
import pytest
import torch
from families import assert_adapters_equal_merged, assert_equal_logits, expected_logits, load_gguf
from gguf_blocks import as_quantized
from gguf_files import write_converted
from qwen.tiny_hybrid import ARCHITECTURES, CLASSES, make

from pipezoo import registry
from pipezoo_core.errors import CheckpointMismatchError, CorruptCheckpointError, UnsupportedModelError
from pipezoo_core.request import TextGenerationRequest
from pipezoo_core.weights import LazyTensor, open_gguf
from pipezoo_qwen.hybrid.config import QwenHybridConfig
from pipezoo_qwen.hybrid.gguf import adapt_hybrid_gguf, hybrid_config_from_gguf

F32, Q4_K, Q8_0 = (gguf.GGMLQuantizationType[kind] for kind in ("F32", "Q4_K", "Q8_0"))
LIMIT = 1e-3  # as of the same models in safetensors


def write(reference, folder, *settings, **named):
    pre = "qwen2" if reference.config.model_type == "qwen3_next" else "qwen35"
    return write_converted(reference, folder, *settings, pre=pre, **named)


CONFIGS = {
    "default": {},
    "as_many_key_heads": {"linear_num_key_heads": 4},
    "three_for_each_key_head": {"linear_num_value_heads": 6, "linear_value_head_dim": 8},
    "one_key_head": {"linear_num_key_heads": 1},
    "taps": {"linear_conv_kernel_dim": 2, "rms_norm_eps": 0.1},
    "bias": {"attention_bias": True},
    "tied": {"tie_word_embeddings": True, "num_key_value_heads": 4},
    "half_rotated": {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0, "partial_rotary_factor": 0.5}},
    "attention_first": {"layer_types": ["full_attention", "linear_attention", "linear_attention"]},
}


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("family", "name"),
    [
        *((family, name) for family in ("qwen3_next", "qwen3_5_text") for name in CONFIGS),
        ("qwen3_5_moe_text", "default"),
    ],
)
def test_logits_equal_transformers(family, name, tmp_path):
    reference = make(family, **CONFIGS[name])
    assert_equal_logits(reference, load_gguf(ARCHITECTURES[family], write(reference, tmp_path)), limit=LIMIT)


@pytest.mark.matrix
@pytest.mark.parametrize("family", CLASSES)
def test_a_quantized_file_keeps_its_numbers(family, tmp_path):
    """Columns that lie in another order, too: where a value head is some whole blocks."""
    sizes = {"head_dim": 32, "linear_value_head_dim": 32, "moe_intermediate_size": 32, "intermediate_size": 64}
    reference = make(family, **sizes, **({} if family == "qwen3_5_text" else {"shared_expert_intermediate_size": 32}))
    for name, parameter in reference.named_parameters():
        if parameter.ndim > 1 and not any(each in name for each in ("conv1d", "mlp.gate.", "shared_expert_gate")):
            parameter.data = torch.tensor(as_quantized(parameter.detach().numpy(), Q8_0))
    path = write(reference, tmp_path, Q8_0)
    assert_equal_logits(reference, load_gguf(ARCHITECTURES[family], path), limit=LIMIT)
    file = open_gguf(path)
    config = ARCHITECTURES[family].huggingface_config(hybrid_config_from_gguf(file))
    found = adapt_hybrid_gguf(file.weights, config)
    for name in ("in_proj_qkv", "out_proj"):
        tensor = found[f"model.layers.0.linear_attn.{name}.weight"]
        kept = gguf.quants.dequantize(tensor.stored.bytes.load().numpy(), Q8_0)
        assert torch.equal(torch.tensor(kept), tensor.load())


@pytest.mark.parametrize("num_key_heads", [2, 4])
def test_columns_of_blocks_that_heads_divide_are_dequantized(num_key_heads, tmp_path):
    """In blocks of 256 numbers lie two value heads of 128, which belong elsewhere where there are fewer key heads."""
    heads = {"linear_num_value_heads": 4, "linear_num_key_heads": num_key_heads, "linear_value_head_dim": 128}
    reference = make("qwen3_5_text", **heads)
    matrix = reference.state_dict()["model.layers.0.linear_attn.out_proj.weight"]
    served = 4 // num_key_heads
    in_file = matrix.unflatten(1, (num_key_heads, served, 128)).transpose(1, 2).flatten(1)
    path = write(reference, tmp_path, lambda name: Q4_K if "ssm_out" in name else F32)
    file = open_gguf(path)
    config = ARCHITECTURES["qwen3_5_text"].huggingface_config(hybrid_config_from_gguf(file))
    tensor = adapt_hybrid_gguf(file.weights, config)["model.layers.0.linear_attn.out_proj.weight"]
    assert file.weights["blk.0.ssm_out.weight"].stored is not None
    assert (tensor.stored is None) == (served > 1)
    rounded = torch.tensor(as_quantized(in_file.numpy(), Q4_K))
    assert torch.equal(tensor.load(), rounded.unflatten(1, (served, num_key_heads, 128)).transpose(1, 2).flatten(1))
    assert (tensor.load() - matrix).abs().max() < 0.1 * matrix.abs().max()


@pytest.mark.parametrize("family", CLASSES)
def test_the_registry_loads_a_file(family, tmp_path):
    reference = make(family)
    path = write(reference, tmp_path)
    with registry.load(path, dtype="float32", device="cpu", kv_cache_memory="4MiB") as llm:
        (output,) = llm.generate(TextGenerationRequest(prompt=[5, 9, 2]), max_new_tokens=1, temperature=0.0)
    assert output.tokens == [int(expected_logits(reference, [5, 9, 2])[-1].argmax())]


def test_the_first_files_have_queries_keys_values_and_gates_in_one_matrix(tmp_path):
    reference = make("qwen3_next")
    tensors = {}
    for number in (0, 2):
        fused = reference.state_dict()[f"model.layers.{number}.linear_attn.in_proj_qkvz.weight"]
        tensors |= {f"blk.{number}.{kind}.weight": None for kind in ("attn_qkv", "attn_gate")}
        tensors[f"blk.{number}.ssm_in.weight"] = fused
    path = write(reference, tmp_path, tensors=tensors)
    assert_equal_logits(reference, load_gguf(ARCHITECTURES["qwen3_next"], path), limit=LIMIT)


@pytest.mark.parametrize("family", CLASSES)
def test_layers_that_predict_further_tokens_are_left_out(family, tmp_path):
    reference = make(family)
    further = {f"blk.3.{kind}.weight": torch.ones(2) for kind in ("nextn.eh_proj", "attn_norm")}
    path = write(reference, tmp_path, metadata={"block_count": 4, "nextn_predict_layers": 1}, tensors=further)
    assert_equal_logits(reference, load_gguf(ARCHITECTURES[family], path), limit=LIMIT)


@pytest.mark.parametrize("family", CLASSES)
def test_layers_that_the_file_does_not_count_are_left_over(family, tmp_path):
    path = write(make(family), tmp_path, metadata={"block_count": 2})
    with pytest.raises(CheckpointMismatchError, match=r"model\.layers\.2\."):
        load_gguf(ARCHITECTURES[family], path)


@pytest.mark.parametrize("family", ["qwen3_next", "qwen3_5_moe_text"])
def test_gate_and_up_of_experts_in_one_tensor(family, tmp_path):
    """Where the converter was told so."""
    reference, tensors = make(family), {}
    for number in range(3):
        tensors |= {f"blk.{number}.ffn_{kind}_exps.weight": None for kind in ("gate", "up")}
        fused = reference.state_dict()[f"model.layers.{number}.mlp.experts.gate_up_proj"]
        tensors[f"blk.{number}.ffn_gate_up_exps.weight"] = fused
    path = write(reference, tmp_path, tensors=tensors)
    assert_equal_logits(reference, load_gguf(ARCHITECTURES[family], path), limit=LIMIT)


@pytest.mark.matrix
@pytest.mark.parametrize("family", CLASSES)
def test_adapters_equal_merged_models(family, tmp_path):
    """They have the names and the order of the model that they were trained on."""
    reference = make(family)
    linear = ["in_proj_qkvz", "in_proj_ba"] if family == "qwen3_next" else ["in_proj_qkv", "in_proj_z", "in_proj_a"]
    model = partial(load_gguf, ARCHITECTURES[family], write(reference, tmp_path))
    targets = ["q_proj", "v_proj", "o_proj", "out_proj", *linear]
    others = ["k_proj", "q_proj"]
    assert_adapters_equal_merged(reference, model, tmp_path, targets=targets, target_modules=others, limit=LIMIT)


def test_the_types_that_also_see_read_the_file_of_their_text(tmp_path):
    for family in ("qwen3_5_text", "qwen3_5_moe_text"):
        reference = make(family, tie_word_embeddings=True)
        path = write(reference, tmp_path)
        assert_equal_logits(reference, load_gguf(ARCHITECTURES[family.removesuffix("_text")], path), limit=LIMIT)


SIZES = {
    "block_count": 2,
    "embedding_length": 64,
    "context_length": 256,
    "attention.head_count": 2,
    "attention.head_count_kv": 1,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.dimension_count": 8,
    "ssm.conv_kernel": 4,
    "ssm.state_size": 16,
    "ssm.group_count": 2,
    "ssm.inner_size": 96,
    "ssm.time_step_rank": 4,
    "expert_count": 8,
    "expert_used_count": 2,
    "expert_feed_forward_length": 24,
    "expert_shared_feed_forward_length": 40,
}


NOT_NEUTRAL = {
    "attention.sliding_window": 8,
    "expert_gating_func": 2,
    "expert_group_count": 2,
    "expert_group_used_count": 2,
    "expert_weights_norm": False,
    "expert_weights_scale": 2.5,
}


def raw_config(architecture="qwen35moe", **changes):
    said = {**SIZES, **changes}
    metadata = {"general.architecture": architecture, **{f"{architecture}.{key}": said[key] for key in said}}
    shapes = {"token_embd.weight": (99, 64), "blk.0.ssm_a": (4,)}
    weights = {name: LazyTensor(shape, torch.float32, torch.zeros(shape).__getitem__) for name, shape in shapes.items()}
    return hybrid_config_from_gguf(SimpleNamespace(metadata=metadata, weights=weights))


def test_what_a_file_says():
    config = QwenHybridConfig.from_huggingface(ARCHITECTURES["qwen3_5_moe_text"].huggingface_config(raw_config()))
    assert config.has_state == (True, False)
    assert (config.delta_net.num_heads, config.delta_net.value_size, config.num_kv_heads) == (4, 24, 1)
    assert (config.mixture.routing.num_experts, config.mixture.shared_intermediate_size) == (8, 40)
    assert config.mixture.routing.normalize
    assert config.rope_parameters["partial_rotary_factor"] == 0.25


@pytest.mark.parametrize(
    "neutral",
    [
        dict.fromkeys(["attention.sliding_window", "expert_group_count", "expert_weights_scale"], 0),
        dict.fromkeys(["expert_gating_func", "expert_group_count", "expert_weights_norm", "expert_weights_scale"], 1),
    ],
)
def test_what_changes_nothing_is_passed_over(neutral):
    assert raw_config(**neutral) == raw_config()


@pytest.mark.parametrize(
    ("architecture", "changes", "error", "message"),
    [
        ("qwen3next", {"ssm.time_step_rank": 0}, CorruptCheckpointError, "ssm.time_step_rank is no size"),
        ("qwen3next", {"expert_count": 0}, CorruptCheckpointError, "expert_count is no size"),
        ("qwen35", {}, CorruptCheckpointError, "lacks 'qwen35.feed_forward_length'"),
        *(
            ("qwen35moe", {"nextn_predict_layers": number}, CorruptCheckpointError, "nextn_predict_layers is not what")
            for number in ("1", 1.0, True, -1, 2)
        ),
        *(
            (architecture, {key: value}, UnsupportedModelError, rf"{architecture}\.{key} asks for something")
            for architecture in ("qwen3next", "qwen35moe")
            for key, value in NOT_NEUTRAL.items()
        ),
        ("qwen35moe", {"rope.dimension_count": 33}, CorruptCheckpointError, "rotates more of each head"),
        ("qwen35moe", {"rope.dimension_count": True}, CorruptCheckpointError, "found: True; allowed: a whole number"),
        ("qwen35moe", {"attention.head_count_kv": [2, 1]}, UnsupportedModelError, "differ in their key/value heads"),
    ],
)
def test_what_is_refused(architecture, changes, error, message):
    with pytest.raises(error, match=message):
        raw_config(architecture, **changes)


def test_a_tensor_of_another_size_is_left_to_be_reported():
    config = ARCHITECTURES["qwen3_5_moe_text"].huggingface_config(raw_config())
    tensor = LazyTensor((5, 7), torch.float32, torch.zeros(5, 7).__getitem__)
    kinds = ("attn_qkv", "attn_gate", "ssm_out", "ssm_beta")
    for kind in kinds:
        (found,) = adapt_hybrid_gguf({f"blk.0.{kind}.weight": tensor}, config).values()
        assert found.shape == (5, 7)
