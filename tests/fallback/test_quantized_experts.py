"""Experts that core computes, rounded when they are loaded, or as a quantized checkpoint has them."""

import shutil

import pytest
import torch
from fallback.served import PROMPTS, greedy, load_served, make_reference
from families import save
from gguf_files import TOKENS
from kernels_here import needs_kernels
from quantized_files import affine, awq_config, awq_parts, gptq_config, gptq_parts, write_quantized
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pipezoo import registry
from pipezoo_core.config import SupportedEncoding
from pipezoo_core.layers import Experts
from pipezoo_core.layers.native_experts import NativeExperts
from pipezoo_core.request import TextGenerationRequest

SETTINGS = {"plugin": "pipezoo-transformers", "device": "cpu", "page_size": 32, "kv_cache_memory": "4MiB"}
KINDS = {
    "awq": (awq_config(32), awq_parts, {}),
    "gptq": (gptq_config(4, 32), gptq_parts, {}),
    "act_order": (gptq_config(4, 32), gptq_parts, {"act_order": True}),
}


@pytest.mark.parametrize(("dtype", "most"), [("int8", 127), ("int4", 7)])
def test_rounded_experts(dtype, most, tmp_path):
    """Each weight is off by a step of the largest scale at most."""
    reference = make_reference("glm4_moe")
    model = load_served(reference, tmp_path, encoding=dtype, linear="torch")
    name, theirs = next(each for each in reference.named_modules() if each[0].endswith("mlp.experts"))
    experts = model.module.get_submodule(name).experts
    for expert, gate_up, down in zip(experts, theirs.gate_up_proj, theirs.down_proj, strict=True):
        for layer, weight in ((expert.gate_up_proj.merged, gate_up), (expert.down_proj, down)):
            found = layer(torch.eye(weight.shape[1])).T
            assert 0 < (found - weight).abs().max() <= weight.abs().max() / most


@pytest.fixture
def quantized(tmp_path, tiny_folder):
    """Returns a function from a kind to the folder of such a checkpoint, and one of the same numbers in float32."""

    def write(kind):
        reference = make_reference("olmoe", vocab_size=len(TOKENS), hidden_size=128, num_hidden_layers=1)
        plain = save(reference, tmp_path / "plain", tiny_folder)
        folder = shutil.copytree(plain, tmp_path / kind)
        config, parts_of, settings = KINDS[kind]
        values = write_quantized(folder, config, parts_of, lambda _, matrix: affine(matrix, group=32, **settings))
        assert sum(".experts." in name for name in values) == 3 * 4
        tensors = load_file(plain / "model.safetensors")
        save_file(tensors | values, plain / "model.safetensors", metadata={"format": "pt"})
        return folder, plain

    return write


@needs_kernels
@pytest.mark.parametrize("kind", KINDS)
def test_experts_of_a_quantized_checkpoint(kind, quantized):
    """They are one kernel where their columns lie in their own order."""
    folder, plain = quantized(kind)
    with registry.load(folder, **SETTINGS) as llm:
        assert llm.pipeline_config.encoding is SupportedEncoding.packed
        (experts,) = [layer for layer in llm.model.module.modules() if isinstance(layer, Experts)]
        assert isinstance(experts._native, NativeExperts) is (kind != "act_order")
    reference = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32, attn_implementation="eager").eval()
    with registry.load(folder, dtype="float32", **SETTINGS) as llm:
        request = TextGenerationRequest(prompt=PROMPTS[0])
        (found,) = llm.generate(request, temperature=0.0, max_new_tokens=8, ignore_eos=True)
        assert found.tokens == greedy(reference, PROMPTS[0], 8)


@needs_kernels
def test_experts_without_a_kernel_are_planned_so(quantized):
    """They take more memory, and which of them have rows is read on the host, which no replayed step can."""

    def planned(kind):
        plan = registry.plan(quantized(kind)[0], **SETTINGS)
        told = plan.architecture.pipeline_model.step_outlook(plan.pipeline_config, plan.files.huggingface_config)
        return plan.memory.activations, told.obstacle

    in_order, reordered = planned("gptq"), planned("act_order")
    assert reordered[0] > in_order[0]
    assert in_order[1] is None
    assert "bincount" in reordered[1]
