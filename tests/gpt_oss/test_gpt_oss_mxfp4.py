"""gpt-oss with experts in MXFP4, as it is published: the files' numbers, in plain torch and kept packed."""

import pytest
import torch
from eights_files import mxfp4
from families import PROMPTS, assert_equal_logits, assert_near_logits, greedy_tokens, save, why_not_replayed
from gpt_oss.tiny_gpt_oss import make
from kernels_here import needs_kernels
from quantized_files import edit_config
from safetensors.torch import load_file, save_file
from tiny_models import load_model
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from pipezoo import registry
from pipezoo_core.config import SupportedEncoding
from pipezoo_core.errors import CorruptCheckpointError
from pipezoo_core.layers import Experts
from pipezoo_core.native import HUGE_PAGE, Packing
from pipezoo_core.request import TextGenerationRequest
from pipezoo_core.weights import find_safetensors, open_safetensors, with_quantized
from pipezoo_gpt_oss.model import GptOssPipelineModel
from pipezoo_gpt_oss.weight_adapters import adapt_safetensors

pytestmark = pytest.mark.matrix

PACKED = SupportedEncoding.packed
SIZES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32, "num_experts_per_tok": 6}  # all: none can change
SETTINGS = {"device": "cpu", "page_size": 32, "kv_cache_memory": "8MiB"}
CONFIG = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"]}


def write(folder, tokenizer):
    """Returns a model with the numbers of the file that is written."""
    reference = make(**SIZES)
    path = save(reference, folder, tokenizer) / "model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        blocks, scales, values = mxfp4(tensors.pop(name).transpose(1, 2).numpy())
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        with torch.no_grad():
            reference.get_parameter(name).copy_(torch.from_numpy(values).transpose(1, 2))
    save_file(tensors, path, metadata={"format": "pt"})
    edit_config(folder, quantization_config=CONFIG)
    return reference


@pytest.fixture(scope="module")
def written(tmp_path_factory, tiny_folder):
    folder = tmp_path_factory.mktemp("mxfp4")
    return write(folder, tiny_folder), folder


def weights_of(folder):
    return with_quantized(open_safetensors(find_safetensors(folder)), {"quantization_config": CONFIG})


def load(written, **settings):
    reference, folder = written
    return load_model(GptOssPipelineModel, folder, reference.config, adapt_safetensors, **settings)


def test_numbers_are_those_of_transformers(written):
    path = written[1] / "model.safetensors"
    tensors, weights = load_file(path), weights_of(written[1])
    for kind in ("gate_up_proj", "down_proj"):
        name = f"model.layers.1.mlp.experts.{kind}"
        theirs = convert_moe_packed_tensors(
            tensors[f"{name}_blocks"], tensors[f"{name}_scales"], dtype=torch.float32
        ).transpose(1, 2)
        found = weights[f"{name}_blocks"]
        assert torch.equal(found.load(), theirs)
        assert torch.equal(found.unstacked()[3].rows(slice(5, 40)).load(), theirs[3, 5:40])
        assert torch.equal(found.stored.type.dequantize(found.stored.bytes.load()), theirs)


def test_logits_equal_transformers(written):
    assert_equal_logits(written[0], load(written))


@needs_kernels
def test_logits_of_what_is_kept_packed(written):
    model = load(written, encoding=PACKED)
    assert_near_logits(written[0], model, 0.15)
    mixtures = [module for module in model.module.modules() if isinstance(module, Experts)]
    packings = {product.packing for each in mixtures for expert in each.experts for product in expert.products}
    assert packings == {Packing.mxfp4}


@needs_kernels
def test_auto_runs_a_checkpoint_as_it_lies(written):
    def tokens(pipeline, prompts):
        requests = [TextGenerationRequest(prompt=prompt) for prompt in prompts]
        answers = pipeline.generate(requests, max_new_tokens=8, temperature=0.0, ignore_eos=True)
        return [answer.tokens for answer in answers]

    with registry.load(written[1], **SETTINGS) as pipeline:
        assert pipeline.pipeline_config.encoding is PACKED
        together = tokens(pipeline, PROMPTS)
        assert [tokens(pipeline, [prompt])[0] for prompt in PROMPTS] == together
    assert why_not_replayed(written[1]) is None


@needs_kernels
def test_the_plan_counts_what_is_packed(written):
    plan = registry.plan(written[1], **SETTINGS)
    tensors = plan.files.weights.values()
    packed = sum(tensor.stored.bytes.num_elements for tensor in tensors if tensor.stored)
    plain = sum(2 * tensor.num_elements for tensor in tensors if not tensor.stored)
    assert packed + plain <= plan.memory.weights <= 1.1 * packed + plain + HUGE_PAGE + 2**16


def test_an_explicit_dtype_dequantizes(written):
    with registry.load(written[1], dtype="float32", **SETTINGS) as pipeline:
        request = TextGenerationRequest(prompt=PROMPTS[1])
        (answer,) = pipeline.generate(request, max_new_tokens=8, temperature=0.0, ignore_eos=True)
        assert answer.tokens == greedy_tokens(written[0], PROMPTS[1], 8)


def test_scales_that_are_missing_are_an_error(written, tmp_path):
    tensors = load_file(written[1] / "model.safetensors")
    del tensors["model.layers.0.mlp.experts.down_proj_scales"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CorruptCheckpointError, match=r"layers.0.mlp.experts.down_proj_blocks: scales is missing"):
        weights_of(tmp_path)
