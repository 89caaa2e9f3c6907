"""What a model with a paged KV cache says about it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import torch

from pipezoo_core.config import KVCacheConfig, PipelineConfig
from pipezoo_core.kv_cache import KVCacheParams, PagedKVCacheManager
from pipezoo_core.session import InferenceSession

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["KVCacheMixin", "get_paged_manager"]


@runtime_checkable
class KVCacheMixin(Protocol):
    """A model that keeps keys and values in pages."""

    def load_kv_manager(self, session: InferenceSession, available_cache_memory: int | None) -> PagedKVCacheManager:
        """Allocates the cache. A class with a cache overrides it; this one does nothing.

        Args:
            session: where.
            available_cache_memory: bytes for all pages of one device; None takes what a full batch of longest requests
                needs.
        """
        ...

    @classmethod
    @abstractmethod
    def get_kv_params(
        cls,
        huggingface_config: PretrainedConfig,
        n_devices: int,
        kv_cache_config: KVCacheConfig,
        cache_dtype: torch.dtype,
    ) -> KVCacheParams:
        """Returns the shape of the cache of one device; where devices differ, of the one with most heads.

        Args:
            huggingface_config: what the model is.
            n_devices: how many devices compute the model together.
            kv_cache_config: settings of the cache.
            cache_dtype: of keys and values.
        """
        ...

    @classmethod
    @abstractmethod
    def get_num_layers(cls, huggingface_config: PretrainedConfig) -> int:
        """Returns the number of layers that have keys and values.

        A name of MAX's, whose pipelines ask for it; ours reads it in what `get_kv_params` returns.
        """
        ...

    @classmethod
    @abstractmethod
    def estimate_kv_cache_size(
        cls,
        pipeline_config: PipelineConfig,
        available_cache_memory: int,
        devices: Sequence[torch.device],
        huggingface_config: PretrainedConfig,
        kv_cache_config: KVCacheConfig,
        cache_dtype: torch.dtype,
    ) -> int:
        """Returns the bytes that the cache takes on each device.

        Args:
            pipeline_config: how the model is run.
            available_cache_memory: bytes that it may take on each device.
            devices: those that compute the model together; only their number matters.
            huggingface_config: what the model is.
            kv_cache_config: settings of the cache.
            cache_dtype: of keys and values.
        """
        ...


_MANAGER_METHODS = ("external_claim", "contains", "maybe_reserve", "fetch", "step", "release")


def get_paged_manager(pipeline: Any) -> PagedKVCacheManager | None:
    """Returns the paged KV cache manager of a pipeline. A name of MAX's, for those who write a pipeline.

    Anything with the methods that a step calls counts as one.

    Returns:
        The first of `pipeline.kv_managers`, or None where there is none or it is of another kind.
    """
    manager = next(iter(getattr(pipeline, "kv_managers", ())), None)
    if all(callable(getattr(manager, name, None)) for name in _MANAGER_METHODS):
        return cast("PagedKVCacheManager", manager)
    return None
