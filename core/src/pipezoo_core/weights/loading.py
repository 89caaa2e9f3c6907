"""Puts a checkpoint's tensors into a module: every name accounted for, and never two copies of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from pipezoo_core.errors import CheckpointMismatchError
from pipezoo_core.layers.linear import MergedLinear
from pipezoo_core.weights.base import LazyTensor

__all__ = ["load_module", "materialize"]

_NUM_THREADS = 4  # dequantizing leaves the interpreter lock most of the time


@torch.inference_mode(mode=False)  # its tensors are filled by other threads, to which a caller's mode does not reach
def materialize(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Gives a module that was built on the meta device real, still empty parameters, and moves its buffers.

    A parameter that two layers share stays shared.
    """
    real: dict[nn.Parameter, nn.Parameter] = {}
    for child in module.modules():
        for name, parameter in child._parameters.items():
            if parameter is None:
                continue
            if parameter not in real:
                empty = torch.empty(parameter.shape, device=device, dtype=dtype)
                real[parameter] = nn.Parameter(empty, requires_grad=False)
            child._parameters[name] = real[parameter]
        for name, buffer in child._buffers.items():
            if buffer is not None:
                child._buffers[name] = buffer.to(device)


def load_module(module: nn.Module, tensors: Mapping[str, LazyTensor]) -> None:
    """Copies each tensor into the module's parameter of that name, converting its dtype.

    Raises:
        CheckpointMismatchError: a name is missing or left over, or a shape differs. Nothing was copied then.
    """
    slots = _slots(module)
    wrong_shape = [
        f"{name}: {list(tensors[name].shape)} -> {list(slot.shape)}"
        for name, slot in slots.items()
        if name in tensors and tensors[name].shape != tuple(slot.shape)
    ]
    missing, unexpected = slots.keys() - tensors.keys(), tensors.keys() - slots.keys()
    if missing or unexpected or wrong_shape:
        raise CheckpointMismatchError(missing=missing, unexpected=unexpected, wrong_shape=wrong_shape)

    def copy(name: str) -> None:
        slots[name].copy_(tensors[name].load())

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        list(pool.map(copy, slots))


def _slots(module: nn.Module) -> dict[str, Tensor]:
    """Returns where each tensor of a checkpoint belongs, merged linears by the names of their parts."""
    slots: dict[str, Tensor] = {}
    merged: set[str] = set()
    for name, child in module.named_modules():
        if isinstance(child, MergedLinear):
            parent = name.rpartition(".")[0]
            merged.add(name)
            slots |= {f"{parent}.{part}".lstrip("."): rows for part, rows in child.slots().items()}
    for name, parameter in module.named_parameters():
        if name.rpartition(".merged.")[0] not in merged:
            slots[name] = parameter.detach()
    return slots
