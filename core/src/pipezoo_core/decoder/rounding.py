"""A decoder's tensors with its weights rounded to 8 or 4 bits, as a load rounds them, to be written to files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from pipezoo_core.config import PipelineConfig, SupportedEncoding
from pipezoo_core.decoder.model import DecoderPipelineModel
from pipezoo_core.decoder.module import outline_of
from pipezoo_core.weights import LazyTensor
from pipezoo_core.weights.keeping import rounded_names
from pipezoo_core.weights.loading import checked_tensors
from pipezoo_core.weights.quantized.rounded import rounded_rows, row_bytes
from pipezoo_core.weights.safetensors_writer import WrittenTensor

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["rounded_decoder"]

_NUMBERS_AT_ONCE = 2**22


def rounded_decoder(
    model: type[DecoderPipelineModel],
    config: PretrainedConfig,
    tensors: Mapping[str, LazyTensor],
    encoding: SupportedEncoding,
) -> list[WrittenTensor]:
    """Returns what a checkpoint of rounded weights holds, under the names of the model's module. Reads nothing yet.

    Args:
        model: runs the model.
        config: of the model.
        tensors: of a checkpoint, by the names of the module.
        encoding: `int8` or `int4`: which layers have how many bits is what a load in it does.

    Raises:
        CheckpointMismatchError: a name is missing or left over, or a shape differs.
        UnsupportedCheckpointError: weights are integers.
    """
    outline = outline_of(
        model.module_class,
        model.config_class.from_huggingface(config),
        PipelineConfig(model_path="", encoding=encoding),
    )
    bits = rounded_names(outline, encoding)
    slots, found = checked_tensors(outline, tensors)
    return [
        _rounded(name, found[name], bits[name]) if name in bits else _plain(name, found[name], slot.dtype)
        for name, slot in slots.items()
    ]


def _rounded(name: str, tensor: LazyTensor, bits: Literal[8, 4]) -> WrittenTensor:
    shape = (tensor.shape[0], row_bytes(tensor.shape[1], bits))
    return WrittenTensor(
        f"{name}_int{bits}", shape, torch.uint8, lambda: (rounded_rows(rows.float(), bits) for rows in _pieces(tensor))
    )


def _plain(name: str, tensor: LazyTensor, dtype: torch.dtype) -> WrittenTensor:
    return WrittenTensor(name, tensor.shape, dtype, lambda: (rows.to(dtype) for rows in _pieces(tensor)))


def _pieces(tensor: LazyTensor) -> Iterator[Tensor]:
    return map(tensor.read, tensor.pieces(max(_NUMBERS_AT_ONCE, tensor.numbers_at_once)))
