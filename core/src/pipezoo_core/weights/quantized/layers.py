"""Makes one tensor of the several that a quantized layer has in safetensors, under its weight's usual name.

What the tensors say wins: a layer with a plain weight is not quantized, whatever the config says of others.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from pipezoo_core.errors import CorruptCheckpointError
from pipezoo_core.weights.base import LazyTensor, Weights
from pipezoo_core.weights.quantized.awq import AWQ
from pipezoo_core.weights.quantized.compressed_tensors import CompressedTensors
from pipezoo_core.weights.quantized.entries import entry_naming, not_read
from pipezoo_core.weights.quantized.format import OF_ROWS, QuantizedFormat
from pipezoo_core.weights.quantized.fp8 import FP8
from pipezoo_core.weights.quantized.gptq import GPTQ
from pipezoo_core.weights.quantized.mxfp4 import MXFP4
from pipezoo_core.weights.quantized.rounded import ROUNDED, Rounded

__all__ = ["with_quantized"]

_FORMATS: Mapping[str, Callable[[Mapping[str, Any]], QuantizedFormat]] = {
    "awq": AWQ,
    "gptq": GPTQ,
    "compressed-tensors": CompressedTensors,
    "fp8": FP8,
    "fbgemm_fp8": FP8,
    "mxfp4": MXFP4,
    ROUNDED: Rounded,
}
"""By `quant_method`: each makes a format of a `quantization_config`."""

_LOGGER = logging.getLogger("pipezoo")

_OF_CACHE = re.compile(r".*\.(?:[qkv]|kv)_(?:scale|zero_point)")
"""Scales of keys and values, and of queries, for a KV cache of 8 bits."""

_BUFFERS = (torch.int64, torch.bool)  # of another implementation: positions, masks


def with_quantized(weights: Weights, config: Mapping[str, Any]) -> Weights:
    """Returns a checkpoint's weights with those as one tensor each that are quantized.

    Args:
        weights: of safetensors.
        config: the checkpoint's config.json.

    Raises:
        UnsupportedCheckpointError: they are quantized in a way that is not read.
        CorruptCheckpointError: tensors do not fit each other, or the config.
    """
    raw = config.get("quantization_config")
    if raw is None:
        return weights
    of_cache = {name for name in weights if _OF_CACHE.fullmatch(name)}
    if of_cache:
        _LOGGER.info("scales of keys and values are passed over, as these are not quantized here: %d", len(of_cache))
        kept = {name: tensor for name, tensor in weights.items() if name not in of_cache}
        weights = Weights(weights.format, kept)
    if not any(map(_is_quantized, weights.values())):
        return weights
    method = str(raw.get("quant_method", "")) if isinstance(raw, Mapping) else ""
    if method not in _FORMATS:
        raise not_read("the checkpoint is quantized by a method", method or "no quant_method", sorted(_FORMATS))
    quantized = _FORMATS[method](raw)
    tensors: dict[str, LazyTensor] = {}
    layers: dict[str, dict[str, LazyTensor]] = {}
    for name, tensor in weights.items():
        if (found := quantized.part_of(name)) is None:
            tensors[name] = tensor
        else:
            layers.setdefault(found[0], {})[found[1]] = tensor
    for name, parts in layers.items():
        plain = parts.get("weight")
        is_alone = all(part == "weight" or OF_ROWS.fullmatch(part) for part in parts)
        if plain is not None and is_alone and not _is_quantized(plain):
            tensors[name] = plain
            continue
        module = name.removesuffix(".weight")
        if (entry := entry_naming(module, quantized.left_out)) is not None:
            raise CorruptCheckpointError(
                f"config.json says that {module} is not quantized, and its weight is",
                found=sorted(parts),
                allowed=f"a plain weight, because of {entry!r}",
                cure="Correct the quantization_config.",
            )
        tensors[name] = quantized.weight(name, parts)
    rounding = quantized.dtype if isinstance(quantized, Rounded) else None
    return Weights(weights.format, tensors, is_quantized=True, is_adapted=rounding is not None, rounding=rounding)


def _is_quantized(tensor: LazyTensor) -> bool:
    """Whether a tensor is of a dtype that only parts of quantized weights have."""
    is_small = tensor.dtype.itemsize == 1 or not tensor.dtype.is_floating_point
    return is_small and tensor.dtype not in _BUFFERS
