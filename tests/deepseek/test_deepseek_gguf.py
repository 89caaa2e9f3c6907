"""GGUF files of DeepSeek, written as llama.cpp's converter does, against transformers on the numbers of the file."""

from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from deepseek.tiny_deepseek import CLASSES, make
from families import PROMPTS, assert_equal_logits, expected_logits, load_gguf
from gguf_files import TOKENS, write_gguf
from lora.peft_adapters import merged, save_adapter
from tiny_models import logits_of

from pipezoo import registry
from pipezoo_core.config import LoRAConfig
from pipezoo_core.errors import CheckpointMismatchError, CorruptCheckpointError, UnsupportedModelError
from pipezoo_core.request import TextGenerationRequest
from pipezoo_core.weights import open_gguf
from pipezoo_deepseek.config import DeepseekConfig, config_from_gguf
from pipezoo_deepseek.plugin import pipezoo_architectures
from pipezoo_deepseek.weight_adapters import adapt_gguf

pytestmark = pytest.mark.matrix

ARCHITECTURES = dict(zip(CLASSES, pipezoo_architectures(), strict=True))
NAMES = {
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}


class Converted:
    """A model with the sizes and the tensors that the converter makes of its own.

    Args:
        reference: transformers' model.
        form: of the latents' matrices: `whole`, as before May 2025, `divided`, as since then, or `both`.
        num_further: layers that predict further tokens, of which some tensors follow.
    """

    def __init__(self, reference, form, num_further):
        config = reference.config
        self._reference, self._form, self._num_further = reference, form, num_further
        of_latents = {"head_dim": config.kv_lora_rank + config.qk_rope_head_dim, "num_key_value_heads": 1}
        of_heads = {"head_dim": config.qk_nope_head_dim + config.qk_rope_head_dim}
        sizes = of_heads if form == "whole" else of_latents
        num_layers = config.num_hidden_layers + num_further
        self.config = SimpleNamespace(**{**config.to_dict(), **sizes, "num_hidden_layers": num_layers})

    def state_dict(self):
        found, config = {}, self._reference.config
        for name, tensor in self._reference.state_dict().items():
            layer = name.removeprefix("model.layers.").partition(".")[0]
            if name.endswith("e_score_correction_bias"):
                found[f"blk.{layer}.exp_probs_b.bias"] = tensor
                continue
            is_of_latents = name.endswith("kv_b_proj.weight")
            if is_of_latents and self._form != "whole":
                heads = tensor.unflatten(0, (config.num_attention_heads, -1))
                keys, values = heads.split([config.qk_nope_head_dim, config.v_head_dim], dim=1)
                found[f"blk.{layer}.attn_k_b.weight"] = keys.transpose(1, 2)
                found[f"blk.{layer}.attn_v_b.weight"] = values
            if not is_of_latents or self._form != "divided":
                found[name] = tensor
        for number in range(config.num_hidden_layers, config.num_hidden_layers + self._num_further):
            found[f"blk.{number}.attn_norm.weight"] = torch.ones(config.hidden_size)
            found[f"blk.{number}.nextn.eh_proj.weight"] = torch.ones(config.hidden_size, config.hidden_size)
        return found


def metadata_of(config, form):
    """What the converter writes beside the sizes that are Llama's, too."""
    rope, is_v3 = config.rope_parameters, config.model_type == "deepseek_v3"
    has_groups = is_v3 or config.topk_method == "group_limited_greedy"
    head = config.qk_nope_head_dim + config.qk_rope_head_dim
    lengths = {"attention.key_length_mla": head, "attention.value_length_mla": config.v_head_dim}
    if form == "whole":
        lengths = {"attention.value_length": config.v_head_dim}
    values = {
        **lengths,
        "attention.kv_lora_rank": config.kv_lora_rank,
        "attention.q_lora_rank": config.q_lora_rank,
        "rope.dimension_count": config.qk_rope_head_dim,
        "leading_dense_block_count": config.first_k_dense_replace,
        "expert_count": config.n_routed_experts,
        "expert_used_count": config.num_experts_per_tok,
        "expert_shared_count": config.n_shared_experts,
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_weights_scale": float(config.routed_scaling_factor),
        "expert_weights_norm": bool(is_v3 and config.norm_topk_prob) or None,
        "expert_gating_func": 2 if is_v3 else 1,
        "expert_group_count": config.n_group if has_groups else None,
        "expert_group_used_count": config.topk_group if has_groups else None,
    }
    if rope["rope_type"] == "yarn":
        values |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": rope["factor"],
            "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
            "rope.scaling.yarn_log_multiplier": 0.1 * rope["mscale_all_dim"] if "mscale_all_dim" in rope else None,
        }
    return values


def write(folder, reference, form="divided", kind="F32", num_further=0, **changes):
    values = {**metadata_of(reference.config, form), "nextn_predict_layers": num_further or None, **changes}
    return write_gguf(
        folder / "m.gguf",
        Converted(reference, form, num_further),
        "deepseek2",
        gguf.GGMLQuantizationType[kind],
        metadata={f"deepseek2.{key}": value for key, value in values.items() if value is not None},
        pre="deepseek-llm",
        names=NAMES,
    )


CASES = {
    "default": {},
    "queries_without_latent": {"q_lora_rank": None},
    "tied": {"tie_word_embeddings": True},
    "no_dense_layer": {"first_k_dense_replace": 0},
    "scale": {"routed_scaling_factor": 0.3},
    "yarn": {"rope_parameters": YARN},
    "yarn_mscale": {"rope_parameters": {**YARN, "mscale": 0.9, "mscale_all_dim": 0.9}},
}
OWN = {
    "deepseek_v2": {"groups": {"topk_method": "group_limited_greedy"}},
    "deepseek_v3": {"not_normalized": {"norm_topk_prob": False}, "without_groups": {"n_group": 1, "topk_group": 1}},
}


@pytest.mark.parametrize(
    ("family", "changes"),
    [(family, changes) for family in CLASSES for changes in (*CASES.values(), *OWN[family].values())],
    ids=[f"{family}-{name}" for family in CLASSES for name in (*CASES, *OWN[family])],
)
def test_logits_equal_transformers(family, changes, tmp_path):
    reference = make(family, **changes)
    assert_equal_logits(reference, load_gguf(ARCHITECTURES[family], write(tmp_path, reference)), chunks=(7,))


@pytest.mark.parametrize("form", ["whole", "both"])
@pytest.mark.parametrize("family", CLASSES)
def test_forms_of_the_latents_matrices(family, form, tmp_path):
    reference = make(family)
    assert_equal_logits(reference, load_gguf(ARCHITECTURES[family], write(tmp_path, reference, form)), chunks=(7,))


@pytest.mark.parametrize("form", ["whole", "divided"])
@pytest.mark.parametrize("kind", ["Q8_0", "BF16"])
def test_quantized_files_equal_transformers_on_their_numbers(kind, form, tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 32, "kv_lora_rank": 32}
    reference = make("deepseek_v3", **sizes, q_lora_rank=32, qk_nope_head_dim=32, v_head_dim=16)
    path = write(tmp_path, reference, form, kind)
    quantization, config = gguf.GGMLQuantizationType[kind], reference.config
    for name, parameter in reference.named_parameters():
        if parameter.dim() < 2:
            continue
        if name.endswith("kv_b_proj.weight") and form == "divided":
            heads = parameter.data.unflatten(0, (config.num_attention_heads, -1))
            keys, values = heads.split([config.qk_nope_head_dim, config.v_head_dim], dim=1)
            keys = rounded(keys.transpose(1, 2), quantization).transpose(1, 2)
            parameter.data = torch.cat((keys, rounded(values, quantization)), dim=1).flatten(0, 1)
        else:
            parameter.data = rounded(parameter.data, quantization)
    assert_equal_logits(reference, load_gguf(ARCHITECTURES["deepseek_v3"], path), chunks=(7,))


def rounded(tensor, quantization):
    """Returns the numbers that are left of a tensor in a file."""
    packed = gguf.quants.quantize(np.ascontiguousarray(tensor.numpy()), quantization)
    return torch.from_numpy(gguf.quants.dequantize(packed, quantization)).view(tensor.shape)


def test_layers_that_predict_further_tokens_are_left_out(tmp_path):
    reference = make("deepseek_v3")
    path = write(tmp_path, reference, num_further=2, nextn_predict_layers=2)
    assert_equal_logits(reference, load_gguf(ARCHITECTURES["deepseek_v3"], path), chunks=(7,))


def test_layers_that_the_file_does_not_count_are_left_over(tmp_path):
    path = write(tmp_path, make("deepseek_v3"), block_count=2)
    with pytest.raises(CheckpointMismatchError, match=r"model\.layers\.2\."):
        load_gguf(ARCHITECTURES["deepseek_v3"], path)


@pytest.mark.parametrize("form", ["whole", "divided"])
@pytest.mark.parametrize(
    "rope", [{"rope_type": "default", "rope_theta": 1e6}, {**YARN, "mscale": 0.7, "mscale_all_dim": 0.7}]
)
@pytest.mark.parametrize("family", CLASSES)
def test_a_config_is_that_of_config_json(family, rope, form, tmp_path):
    reference = make(family, rope_parameters=rope)
    file = open_gguf(write(tmp_path, reference, form))
    found = DeepseekConfig.from_huggingface(ARCHITECTURES[family].huggingface_config(config_from_gguf(file)))
    expected = DeepseekConfig.from_huggingface(reference.config)
    assert found.scale == pytest.approx(expected.scale)
    for name in (
        "routing",
        "num_dense_layers",
        "num_shared_experts",
        "query_rank",
        "max_seq_len",
        "head_dim",
        "value_dim",
    ):
        assert getattr(found, name) == getattr(expected, name)


@pytest.mark.parametrize("family", CLASSES)
def test_it_answers(family, tmp_path):
    with registry.load(write(tmp_path, make(family)), dtype="bfloat16", device="cpu", kv_cache_memory="4MiB") as llm:
        (output,) = llm.generate(TextGenerationRequest(prompt="hello"), max_new_tokens=5, ignore_eos=True)
        assert len(output.tokens) == 5
        assert llm.tokenizer.eos_token_ids == {len(TOKENS) - 1}


@pytest.mark.parametrize("key", ["expert_count", "attention.kv_lora_rank", "leading_dense_block_count"])
def test_what_is_missing_is_named(key, tmp_path):
    file = open_gguf(write(tmp_path, make("deepseek_v2")))
    del file.metadata[f"deepseek2.{key}"]
    with pytest.raises(CorruptCheckpointError, match=rf"lacks 'deepseek2\.{key}'"):
        config_from_gguf(file)


@pytest.mark.parametrize("wrong", ["4", 1.0, True, -1, 4])
@pytest.mark.parametrize("key", ["leading_dense_block_count", "nextn_predict_layers"])
def test_what_is_no_number_of_layers_is_named(key, wrong, tmp_path):
    file = open_gguf(write(tmp_path, make("deepseek_v2")))
    file.metadata[f"deepseek2.{key}"] = wrong
    with pytest.raises(CorruptCheckpointError, match=rf"deepseek2\.{key} is not what"):
        config_from_gguf(file)


@pytest.mark.parametrize("key", ["expert_group_count", "expert_group_used_count"])
def test_what_is_no_number_is_named(key, tmp_path):
    file = open_gguf(write(tmp_path, make("deepseek_v2")))
    file.metadata[f"deepseek2.{key}"] = "4"
    with pytest.raises(CorruptCheckpointError, match=rf"deepseek2\.{key}"):
        config_from_gguf(file)


def test_a_scale_of_zero_is_none(tmp_path):
    """As llama.cpp reads it."""
    file = open_gguf(write(tmp_path, make("deepseek_v2"), expert_weights_scale=0.0))
    assert config_from_gguf(file)["routed_scaling_factor"] == 1.0


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"expert_gating_func": 3}, "makes scores in an unknown way"),
        ({"attention.temperature_scale": 0.1}, "scales queries by their positions"),
        ({"rope.scaling.attn_factor": 2.0}, "settings of RoPE that no config.json can say"),
    ],
)
def test_what_no_config_can_say_is_refused(changes, why, tmp_path):
    with pytest.raises(UnsupportedModelError, match=why):
        config_from_gguf(open_gguf(write(tmp_path, make("deepseek_v2"), **changes)))


def test_matrices_of_other_heads_are_left_over(tmp_path):
    reference = make("deepseek_v2")
    file = open_gguf(write(tmp_path, reference))
    tensors = dict(file.weights)
    tensors["blk.1.attn_v_b.weight"] = tensors["blk.1.attn_k_b.weight"].rows(slice(0, 3))
    config = ARCHITECTURES["deepseek_v2"].huggingface_config(config_from_gguf(file))
    assert {"blk.1.attn_k_b.weight", "blk.1.attn_v_b.weight"} <= set(adapt_gguf(tensors, config))


@pytest.mark.parametrize("family", CLASSES)
def test_adapters_equal_merged_models(family, tmp_path):
    """They have the names and the order of the model that they were trained on."""
    reference = make(family)
    save_adapter(reference, tmp_path / "one", target_modules=["q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"])
    lora = LoRAConfig(lora_paths=[f"one={tmp_path / 'one'}"], max_num_loras=1)
    model = load_gguf(ARCHITECTURES[family], write(tmp_path, reference), lora=lora)
    (found,) = logits_of(model, [PROMPTS[1]], 7, ["one"])
    expected = expected_logits(merged(reference, tmp_path / "one"), PROMPTS[1])
    assert (found - expected).abs().max() < 1e-4
    assert (found - expected_logits(reference, PROMPTS[1])).abs().max() > 0.1
