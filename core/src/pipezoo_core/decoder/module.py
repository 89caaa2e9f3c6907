"""The part of a decoder-only model that a plugin writes: its outline before anything is loaded, and loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipezoo_core.attention import AttentionBackends
from pipezoo_core.config import AttentionName, PipelineConfig, SupportedEncoding
from pipezoo_core.decoder.config import DecoderConfig
from pipezoo_core.decoder.load_cache import cache_entry
from pipezoo_core.distributed import TensorParallelGroup
from pipezoo_core.kv_cache import KVCacheInputs
from pipezoo_core.layers import join_experts, set_dtype, shard_module, use_linear_backend
from pipezoo_core.native import NativeKernels, PackedStore
from pipezoo_core.session import InferenceSession
from pipezoo_core.weights import LazyTensor, load_module, torch_dtype
from pipezoo_core.weights.load_cache import CacheEntry, StaleEntryError

__all__ = ["DecoderModule", "load_decoder", "outline_of"]


class DecoderModule(Protocol):
    """What `DecoderPipelineModel` needs of a plugin's module.

    Built as `Module(config, backends)` on torch's meta device; what else it keeps to is in docs/writing-a-plugin.md.
    """

    def __call__(self, tokens: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        """Maps tokens [T] to hidden states [T, hidden_size]."""
        ...

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Maps hidden states [rows, hidden_size] to logits [rows, vocab_size]."""
        ...


def outline_of(module_class: Any, config: DecoderConfig, pipeline_config: PipelineConfig) -> nn.Module:
    """Returns a module in the run's precision, on the meta device: shapes without numbers.

    Of several ranks it is that of the last one, whose part is the largest.
    """
    dtype, num_ranks = torch_dtype(pipeline_config.encoding), pipeline_config.tensor_parallel_degree
    kernels = NativeKernels(torch.device("meta"), dtype)
    page_size = pipeline_config.kv_cache.page_size
    backends = AttentionBackends(AttentionName.reference, config.layers, kernels, page_size)
    with torch.device("meta"):
        module: nn.Module = module_class(config, backends)
    if num_ranks > 1:
        shard_module(module, TensorParallelGroup(num_ranks - 1, num_ranks))
    set_dtype(module, dtype)
    return module


def load_decoder(
    module_class: Any,
    config: DecoderConfig,
    backends: AttentionBackends,
    tensors: Mapping[str, LazyTensor],
    *,
    pipeline_config: PipelineConfig,
    encoding: SupportedEncoding,
    session: InferenceSession,
    kernels: NativeKernels,
) -> DecoderModule:
    """Builds a module on the session's device, each weight in the form that it is computed from.

    Args:
        module_class: the plugin's.
        config: of the model.
        backends: compute its attention.
        tensors: its weights, by the names of the module.
        pipeline_config: how to run it.
        encoding: precision of weights and activations.
        session: where; of several ranks, this one's part is loaded.
        kernels: of this model.

    Raises:
        CheckpointError: names or shapes differ from the module's, or a file is damaged.
    """

    def loaded(*, are_packed: bool) -> nn.Module:
        with torch.device("meta"):
            module: nn.Module = module_class(config, backends)
        load_module(
            module,
            tensors,
            session.device,
            torch_dtype(encoding),
            convert,
            in_full=encoding.rounds_weights,  # so that the numbers of a Q8_0 file stay what they are in int8
            keep_stored=encoding is SupportedEncoding.packed,
            are_packed=are_packed,
            group=session.group,
        )
        join_experts(module)
        return module.eval()

    def convert(part: nn.Module) -> None:
        use_linear_backend(
            pipeline_config.linear,
            part,
            session.device,
            encoding,
            kernels,
            fuse=pipeline_config.fuses_layers,
            fuse_experts=pipeline_config.fuses_experts,
        )

    entry = cache_entry(module_class, pipeline_config, encoding, session, kernels)
    return _loaded_by(kernels, entry, loaded)  # type: ignore[return-value]  # nn.Module.__call__ is typed as Any


def _loaded_by(kernels: NativeKernels, entry: CacheEntry | None, loaded: Callable[..., nn.Module]) -> nn.Module:
    """Returns the module, with packed weights from the load cache where it has them."""
    if entry is None:
        return loaded(are_packed=False)
    if (module := _from_cache(kernels, entry, loaded)) is not None:
        return module
    with entry.written() as writer, _stored_in(kernels, writer):
        return loaded(are_packed=False)


def _from_cache(kernels: NativeKernels, entry: CacheEntry, loaded: Callable[..., nn.Module]) -> nn.Module | None:
    """Returns the module with the cache's weights; None where it has none, and then holds no memory of them either."""
    if (found := entry.read()) is None:
        return None
    try:
        with _stored_in(kernels, found):
            module = loaded(are_packed=True)
        found.check_end()
    except StaleEntryError as error:
        entry.drop(error)
        return None
    return module


@contextmanager
def _stored_in(kernels: NativeKernels, store: PackedStore | None) -> Iterator[None]:
    kernels.store = store
    try:
        yield
    finally:
        kernels.store = None
