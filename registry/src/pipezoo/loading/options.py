"""The keywords of `registry.load`, for editors and type checkers. `LoadSettings` says what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    import torch

__all__ = ["LoadOptions"]


class LoadOptions(TypedDict, total=False):
    """The settings of a load, each of them optional; docs/settings.md has their defaults."""

    revision: str | None
    plugin: str | None
    device: str | torch.device
    devices: Sequence[str | torch.device] | None
    dtype: str | torch.dtype
    max_length: int | None
    max_batch_size: int
    max_batch_tokens: int
    kv_cache_memory: int | str | None
    page_size: int
    enable_prefix_caching: bool
    attention: Literal["auto", "native", "paged", "reference"]
    linear: Literal["auto", "native", "onednn", "torch"]
    speculative: Literal["lookup", "off"]
    enforce_eager: bool
    rank_timeout: float
    load_cache: bool | str | Path | None
    load_cache_size: int | str
    lora_paths: str | Path | Sequence[str | Path]
    max_num_loras: int | None
    max_lora_rank: int | None
    lora_experts: bool | None
    data_parallel_degree: int
