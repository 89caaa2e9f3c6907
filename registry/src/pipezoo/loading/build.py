"""From a plan to a running pipeline: the weights are read, the tokenizer and the KV caches made."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipezoo.loading.devices import of_each_replica
from pipezoo.loading.plan import LoadPlan
from pipezoo.loading.report import log_load
from pipezoo.loading.tokenizer import build_tokenizer, load_delegate
from pipezoo_core.config import ReturnLogits
from pipezoo_core.context import TextContext
from pipezoo_core.distributed import TensorParallelGroup
from pipezoo_core.interfaces import PipelineModel
from pipezoo_core.memory import release_freed_memory
from pipezoo_core.pipeline import TextGenerationPipeline
from pipezoo_core.session import InferenceSession

__all__ = ["build_pipeline", "open_model"]


def build_pipeline(plan: LoadPlan, groups: Sequence[TensorParallelGroup] = ()) -> TextGenerationPipeline:
    """Loads the tokenizer and, for each replica, the weights, and allocates its KV cache.

    Args:
        plan: of `plan_load`.
        groups: for each replica the ranks that compute it together, of which this is rank 0; none where this process
            is alone.
    """
    assert plan.pipeline_config.max_length is not None
    delegate = load_delegate(plan.files, plan.architecture)
    tokenizer = build_tokenizer(plan.files, delegate, max_length=plan.pipeline_config.max_length)
    parts = of_each_replica(plan.devices, plan.pipeline_config.data_parallel_degree)
    their_groups: Sequence[TensorParallelGroup | None] = groups or [None] * len(parts)
    models = [open_model(plan, devices, group) for devices, group in zip(parts, their_groups, strict=True)]
    pipeline = TextGenerationPipeline(plan.pipeline_config, models, tokenizer, plan.memory)
    log_load(plan, pipeline)
    return pipeline


def open_model(
    plan: LoadPlan, devices: Sequence[torch.device], group: TensorParallelGroup | None = None
) -> PipelineModel[TextContext]:
    """Loads the weights of one replica, or one rank's part of them, and allocates its KV cache."""
    session = InferenceSession(devices, group)
    model = plan.architecture.pipeline_model(
        pipeline_config=plan.pipeline_config,
        session=session,
        huggingface_config=plan.files.huggingface_config,
        encoding=plan.pipeline_config.encoding,
        devices=session.devices,
        kv_cache_config=plan.pipeline_config.kv_cache,
        weights=plan.files.weights,
        adapter=plan.architecture.weight_adapters[plan.files.weights.format],
        return_logits=ReturnLogits.VARIABLE,
    )
    release_freed_memory()
    return model
