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
        """Allocates the cache.

        Args:
            session: where.
            available_cache_memory: bytes for all pages; None takes what a full batch of longest requests needs.
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
        """Returns the shape of the cache."""
        ...

    @classmethod
    @abstractmethod
    def get_num_layers(cls, huggingface_config: PretrainedConfig) -> int:
        """Returns the number of layers that have keys and values."""
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
        """Returns the bytes the cache takes when it may take `available_cache_memory`."""
        ...


_MANAGER_METHODS = ("external_claim", "contains", "maybe_reserve", "fetch", "step", "release")


def get_paged_manager(pipeline: Any) -> PagedKVCacheManager | None:
    """Returns the paged KV cache manager of a pipeline.

    Anything with the manager's methods counts as one, so that a plugin may bring its own.

    Returns:
        The first of `pipeline.kv_managers`, or None where there is none or it is of another kind.
    """
    manager = next(iter(getattr(pipeline, "kv_managers", ())), None)
    if all(callable(getattr(manager, name, None)) for name in _MANAGER_METHODS):
        return cast("PagedKVCacheManager", manager)
    return None
