"""What the log says of a load: who serves the model, and what "auto" has come to."""

from __future__ import annotations

import logging
from collections import Counter

from pipezoo.loading.plan import LoadPlan
from pipezoo_core.config import LinearName
from pipezoo_core.decoder import DecoderPipelineModel, StepOutlook
from pipezoo_core.layers import choose_linear
from pipezoo_core.native import NativeKernels
from pipezoo_core.pipeline import TextGenerationPipeline
from pipezoo_core.weights import torch_dtype

__all__ = ["log_load"]

_LOGGER = logging.getLogger("pipezoo")


def log_load(plan: LoadPlan, pipeline: TextGenerationPipeline) -> None:
    """Says at level INFO, in one line, what was loaded and how it runs."""
    if _LOGGER.isEnabledFor(logging.INFO):
        plugin, config, outlook = plan.resolution.plugin, plan.pipeline_config, _outlook(plan)
        _LOGGER.info(
            "loaded %s by %s %s: %s on %s, attention %s, linear %s, %sKV cache %d pages of %d tokens (%.4g MiB)%s",
            plan.files.source.name,
            plugin.distribution,
            plugin.version,
            config.encoding,
            _devices(plan),
            "of the plugin" if outlook is None else outlook.attention,
            _linear(plan),
            "" if outlook is None else f"replayed steps: {outlook.replay}; ",
            pipeline.kv_managers[0].total_num_pages,
            config.kv_cache.page_size,
            plan.memory.kv_cache / 2**20,
            _whose(plan),
        )


def _devices(plan: LoadPlan) -> str:
    counts = Counter(map(str, plan.devices))
    return ", ".join(f"{count} × {name}" if count > 1 else name for name, count in counts.items())


def _linear(plan: LoadPlan) -> str:
    config, device = plan.pipeline_config, plan.devices[0]
    kernels = NativeKernels(device, torch_dtype(config.encoding))
    chosen = choose_linear(config.linear, device, config.encoding, kernels)
    is_slower = config.linear is LinearName.auto and chosen is not LinearName.native
    reason = kernels.obstacle if is_slower else None
    return chosen if reason is None else f"{chosen} (no kernel: {reason})"


def _outlook(plan: LoadPlan) -> StepOutlook | None:
    model = plan.architecture.pipeline_model
    if not issubclass(model, DecoderPipelineModel):
        return None
    return model.step_outlook(plan.pipeline_config, plan.files.huggingface_config)


def _whose(plan: LoadPlan) -> str:
    """Says of what the cache is that was told, where there are several."""
    memory = plan.memory
    of_ranks = f" on each of {memory.num_ranks} devices" if memory.num_ranks > 1 else ""
    return of_ranks + (f" of each of {memory.num_replicas} replicas" if memory.num_replicas > 1 else "")
