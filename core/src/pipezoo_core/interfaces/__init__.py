"""The interfaces of MAX's `max.pipelines.lib.interfaces`, over torch: the same names, the same signatures."""

from pipezoo_core.interfaces.generate import GenerateMixin
from pipezoo_core.interfaces.kv_cache import KVCacheMixin, get_paged_manager
from pipezoo_core.interfaces.pipeline_model import (
    ModelInputs,
    ModelOutputs,
    PipelineModel,
    upper_bounded_default,
)
from pipezoo_core.interfaces.signal_buffers import AlwaysSignalBuffersMixin
from pipezoo_core.interfaces.tokenizer import PipelineTokenizer

__all__ = [
    "AlwaysSignalBuffersMixin",
    "GenerateMixin",
    "KVCacheMixin",
    "ModelInputs",
    "ModelOutputs",
    "PipelineModel",
    "PipelineTokenizer",
    "get_paged_manager",
    "upper_bounded_default",
]
