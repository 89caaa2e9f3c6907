"""Mixtral against transformers on the same weights, for everything that its config can express."""

import json
import shutil
from dataclasses import fields
from types import SimpleNamespace

import gguf
import pytest
import torch
from families import (
    NATIVE,
    PROMPTS,
    assert_adapters_equal_merged,
    assert_equal_greedy_tokens,
    assert_equal_logits,
    assert_equal_on_ranks,
    assert_matters,
    expected_logits,
    greedy_tokens,
    load_gguf,
    save,
    why_not_replayed,
)
from gguf_blocks import as_q4_k_m, as_quantized
from gguf_files import TOKENS, gguf_name, write_llama_gguf
from quantized_files import affine, gptq_config, gptq_parts, write_quantized
from safetensors.torch import load_file, save_file
from tiny_models import TINY_LLAMA, load_model, logits_of, randomize
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from pipezoo import registry
from pipezoo_core.config import SupportedEncoding
from pipezoo_core.errors import CheckpointMismatchError, UnsupportedModelError
from pipezoo_core.layers import Experts
from pipezoo_core.layers.native_experts import NativeExperts
from pipezoo_core.native import NativeKernels
from pipezoo_core.request import TextGenerationRequest
from pipezoo_core.weights import open_gguf
from pipezoo_mistral.config import MistralConfig
from pipezoo_mistral.huggingface_config import MixtralHuggingFaceConfig
from pipezoo_mistral.plugin import pipezoo_architectures

pytestmark = pytest.mark.matrix

HAS_KERNELS = NativeKernels(torch.device("cpu"), torch.float32).obstacle is None
(MIXTRAL,) = (each for each in pipezoo_architectures() if each.name == "MixtralForCausalLM")
CONFIGS = {
    "default": {},
    "one_expert_per_token": {"num_experts_per_tok": 1},
    "all_experts": {"num_experts_per_tok": 6},
    "head_dim": {"head_dim": 20},
    "window": {"sliding_window": 12},
    "tied": {"tie_word_embeddings": True},
    "multi_query": {"num_key_value_heads": 1},
    "activation": {"hidden_act": "gelu"},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e6, "factor": 4.0}},
}


def make(**changes):
    values = {**TINY_LLAMA, "vocab_size": len(TOKENS), "num_local_experts": 6, **changes}
    return randomize(MixtralForCausalLM(MixtralConfig(**values, attn_implementation="eager")))


def saved(reference, folder):
    """What `load_model` takes."""
    reference.save_pretrained(folder)
    config = MixtralHuggingFaceConfig.from_pretrained(folder)
    return MIXTRAL.pipeline_model, folder, config, MIXTRAL.weight_adapters["safetensors"]


def test_more_experts_than_a_file_can_have_are_refused_before_they_are_made(tmp_path):
    make().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_local_experts": 10**9}))
    with pytest.raises(CheckpointMismatchError, match=r"num_experts: at most \d+ -> 1000000000"):
        registry.load(tmp_path, device="cpu")


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name, tmp_path):
    reference = make(**CONFIGS[name])
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path)))


@pytest.mark.skipif(not HAS_KERNELS, reason="pipezoo-kernels cannot be used here")
def test_logits_of_native_kernels(tmp_path):
    reference = make(head_dim=32, intermediate_size=64)
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path), **NATIVE))
    assert why_not_replayed(tmp_path, dtype="float32") is None


@pytest.mark.parametrize("name", ["one_expert_per_token", "all_experts", "window", "activation", "theta"])
def test_switches_matter(name):
    assert_matters(make(), make(**CONFIGS[name]))


def test_greedy_tokens_equal_transformers(tiny_folder, tmp_path):
    reference = make()
    assert_equal_greedy_tokens(reference, save(reference, tmp_path, tiny_folder), few_pages=16 * 8 * 2 * 3 * 2 * 8 * 4)


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_equal_transformers(num_ranks, tmp_path):
    reference = make()
    assert_equal_on_ranks(reference, saved(reference, tmp_path / "model"), tmp_path, num_ranks)


def test_adapters_of_the_attention_equal_merged_models(tmp_path):
    reference = make()
    model = saved(reference, tmp_path / "model")
    assert_adapters_equal_merged(reference, model, tmp_path, targets=["q_proj", "o_proj"], target_modules=["v_proj"])


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_it_answers(dtype, tiny_folder, tmp_path):
    folder = save(make(head_dim=32), tmp_path, tiny_folder)
    with registry.load(folder, dtype=dtype, device="cpu", kv_cache_memory="8MiB") as llm:
        (output,) = llm.generate(TextGenerationRequest(prompt=[5, 9]), max_new_tokens=5, ignore_eos=True)
        assert len(output.tokens) == 5


def write_mixtral(path, reference, quantization=gguf.GGMLQuantizationType.F32):
    """As converters write it: as a llama that has experts."""
    config = reference.config
    sizes = {"expert_count": config.num_local_experts, "expert_used_count": config.num_experts_per_tok}
    return write_llama_gguf(path, reference, quantization, {f"llama.{key}": size for key, size in sizes.items()})


@pytest.mark.parametrize("changes", [{}, {"num_experts_per_tok": 3, "num_key_value_heads": 4}], ids=str)
def test_a_gguf_file_that_calls_itself_llama(changes, tmp_path):
    reference = make(**changes)
    path = write_mixtral(tmp_path / "m.gguf", reference)
    assert_equal_logits(reference, load_gguf(MIXTRAL, path))
    resolution = registry.resolve(path)
    assert (resolution.plugin.distribution, resolution.architecture.name) == ("pipezoo-mistral", MIXTRAL.name)


@pytest.mark.skipif(not HAS_KERNELS, reason="pipezoo-kernels cannot be used here")
def test_experts_of_a_packed_file_are_one_kernel(tmp_path):
    """Whose matrices are of two types, and were not rounded a second time."""
    reference = make(hidden_size=256, intermediate_size=256, head_dim=64, num_hidden_layers=1)
    path = write_mixtral(tmp_path / "m.gguf", reference, as_q4_k_m)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if parameter.ndim > 1 and "mlp.gate." not in name:
                of_experts = {"gate_up_proj": "ffn_up_exps.weight", "down_proj": "ffn_down_exps.weight"}
                kind = as_q4_k_m(of_experts.get(name.rpartition(".")[2]) or gguf_name(name))
                parameter.copy_(torch.from_numpy(as_quantized(parameter.numpy(), kind)))
    model = load_gguf(MIXTRAL, path, SupportedEncoding.packed, linear="native")
    (experts,) = [layer for layer in model.module.modules() if isinstance(layer, Experts)]
    assert isinstance(experts._native, NativeExperts)
    for prompt, found in zip(PROMPTS, logits_of(model, PROMPTS), strict=True):
        expected = expected_logits(reference, prompt)
        assert (found - expected).norm(dim=-1).median() < 0.15 * expected.norm(
            dim=-1
        ).median()  # some take other experts


@pytest.mark.parametrize("act_order", [False, True])
def test_experts_of_a_quantized_checkpoint(act_order, tmp_path, tiny_folder):
    """They are one kernel where their columns lie in their own order."""
    if NativeKernels(torch.device("cpu"), torch.bfloat16).obstacle:
        pytest.skip("there are no kernels")
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    plain = save(make(**sizes, vocab_size=len(TOKENS), num_hidden_layers=1), tmp_path / "plain", tiny_folder)
    folder = shutil.copytree(plain, tmp_path / "quantized")
    values = write_quantized(
        folder, gptq_config(4, 32), gptq_parts, lambda _, matrix: affine(matrix, group=32, act_order=act_order)
    )
    assert sum(".experts." in name for name in values) == 3 * 6
    tensors = load_file(plain / "model.safetensors")
    save_file(tensors | values, plain / "model.safetensors", metadata={"format": "pt"})
    reference = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32, attn_implementation="eager").eval()
    with registry.load(folder, device="cpu", page_size=32, kv_cache_memory="8MiB") as llm:
        assert llm.pipeline_config.encoding is SupportedEncoding.packed
        (experts,) = [layer for layer in llm.model.module.modules() if isinstance(layer, Experts)]
        assert isinstance(experts._native, NativeExperts) is not act_order
    with registry.load(folder, dtype="float32", device="cpu", page_size=8, kv_cache_memory="8MiB") as llm:
        (found,) = llm.generate(TextGenerationRequest(prompt=PROMPTS[0]), temperature=0.0, max_new_tokens=8)
        assert found.tokens == greedy_tokens(reference, PROMPTS[0], 8)


def test_a_gguf_file_with_a_tensor_per_expert(tmp_path):
    """As the first converters wrote them."""
    reference = make()
    path = write_mixtral(tmp_path / "stacked.gguf", reference)
    apart = SimpleNamespace(config=reference.config, state_dict=lambda: dict(_apart(reference.state_dict())))
    found = write_mixtral(tmp_path / "apart.gguf", apart)
    assert "blk.1.ffn_up.3.weight" in open_gguf(found).weights
    assert "blk.1.ffn_up_exps.weight" in open_gguf(path).weights
    assert_equal_logits(reference, load_gguf(MIXTRAL, found))


def _apart(tensors):
    for name, tensor in tensors.items():
        layer, _, stacked = name.removeprefix("model.layers.").partition(".mlp.experts.")
        if stacked == "gate_up_proj":
            for number, (gate, up) in enumerate(expert.chunk(2) for expert in tensor):
                yield f"blk.{layer}.ffn_gate.{number}.weight", gate
                yield f"blk.{layer}.ffn_up.{number}.weight", up
        elif stacked == "down_proj":
            for number, expert in enumerate(tensor):
                yield f"blk.{layer}.ffn_down.{number}.weight", expert
        else:
            yield name, tensor


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"num_local_experts": 2, "num_experts_per_tok": 3}, "experts cannot be chosen"),
        ({"hidden_act": "no_such_function"}, "activation function is unknown"),
    ],
    ids=str,
)
def test_refused(said, why):
    with pytest.raises(UnsupportedModelError, match=why):
        MistralConfig.from_huggingface(MixtralHuggingFaceConfig.from_dict(said))


@pytest.mark.parametrize(
    "said", [{}, {"sliding_window": 7, "head_dim": 64}, {"num_experts": 4}, {"num_local_experts": 4}], ids=str
)
def test_says_what_transformers_says(said):
    ours, theirs = MixtralHuggingFaceConfig.from_dict(dict(said)), MixtralConfig.from_dict(dict(said))
    assert MistralConfig.from_huggingface(ours) == MistralConfig.from_huggingface(theirs)
    for name in {field.name for field in fields(ours)} - {"head_dim"}:
        assert getattr(ours, name) == getattr(theirs, name), name
