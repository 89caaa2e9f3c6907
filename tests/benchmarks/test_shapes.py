"""The shapes of each `model_type`: all are there, and what the plan counts of a layer is what a replayed step takes."""

from importlib import import_module

import pytest
import shapes
import torch
from transformers import AutoConfig

from pipezoo import registry
from pipezoo.discovery.published import FALLBACK, PUBLISHED
from pipezoo_core.attention import AttentionBackends
from pipezoo_core.config import PipelineConfig
from pipezoo_core.decoder.recorded_module import RecordedModule
from pipezoo_core.decoder.replay import _empty_step, _without_numbers
from pipezoo_core.native import NativeKernels
from pipezoo_core.weights import torch_dtype

CPU = torch.device("cpu")
# whose text, or whose like, has a shape:
ELSEWHERE = {"gemma3", "gpt-oss", "mistral3", "qwen3_5", "qwen3_5_moe", "replit_lm"}
FIXED = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


def test_each_type_has_a_shape():
    assert {*shapes.TYPES} | ELSEWHERE == {*PUBLISHED}


@pytest.fixture(scope="module")
def architectures():
    """By the `model_type` that they serve."""
    modules = {info.module for info in registry.plugins() if info.distribution != FALLBACK}
    found = [each for module in modules for each in import_module(module).pipezoo_architectures()]
    return {model_type: each for each in found for model_type in each.model_types}


@pytest.mark.skipif(
    NativeKernels(CPU, torch.float32).obstacle is not None, reason="pipezoo-kernels cannot be used here"
)
@pytest.mark.matrix
@pytest.mark.parametrize("model_type", shapes.TYPES)
def test_a_row_of_a_replayed_step_takes_what_the_plan_says(model_type, architectures):
    model = architectures[model_type].pipeline_model
    values = AutoConfig.for_model(model_type, **shapes.TYPES[model_type], **FIXED).to_dict()
    huggingface_config = architectures[model_type].huggingface_config(values)
    config = PipelineConfig(model_path="", device="cpu", encoding="bfloat16", max_length=1024)
    counted = [
        model.estimate_activation_memory(config.updated(max_batch_tokens=count), huggingface_config)
        for count in (1024, 2048)
    ]
    assert recorded_row(model, config, huggingface_config) == pytest.approx((counted[1] - counted[0]) / 1024, rel=0.1)


def recorded_row(model, pipeline_config, huggingface_config):
    """Returns the bytes that a step takes for each row, its tensors given places by when they are alive."""
    config = model.config_class.from_huggingface(huggingface_config)
    kernels = NativeKernels(CPU, torch_dtype(pipeline_config.encoding))
    page_size = pipeline_config.kv_cache.page_size
    backends = AttentionBackends(pipeline_config.attention, config.layers, kernels, page_size)
    module = _without_numbers(model.module_class, config, backends, kernels, pipeline_config)
    recorded = RecordedModule(module, kernels, 64)
    assert recorded.obstacle_to(1, _empty_step(config, backends, pipeline_config)) is None
    return recorded._program._memory.bytes_per_row
