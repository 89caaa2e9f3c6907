"""Which precision to run in."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from pipezoo_core.config import SupportedEncoding
from pipezoo_core.errors import InvalidSettingError
from pipezoo_core.native import NativeKernels
from pipezoo_core.weights.base import Weights

__all__ = ["resolve_encoding", "torch_dtype"]


def torch_dtype(encoding: SupportedEncoding) -> torch.dtype:
    """Returns the dtype of activations, keys and values in this encoding, and of weights that are not quantized."""
    dtype: torch.dtype = torch.bfloat16 if encoding.is_quantized else getattr(torch, encoding.value)
    return dtype


def resolve_encoding(
    requested: str,
    weights: Weights,
    device: torch.device,
    supported: Collection[SupportedEncoding],
    *,
    by_kernels: bool,
    packs: bool,
) -> SupportedEncoding:
    """Returns the encoding the user named, or for `auto` the one that fits checkpoint and device.

    A checkpoint whose weights were rounded to the encoding that the user named is run as it is where the kernels can,
    and else is rounded again: it takes the memory that was asked for.

    `auto` takes the precision of most of the checkpoint's numbers. A quantized one runs `packed` where the kernels
    compute it, and else in bfloat16. On a CPU float16 gives way to float32, as does bfloat16 where the CPU has no
    instructions for it and the native kernels do not compute either.

    Args:
        requested: what the user named.
        weights: the checkpoint, headers read.
        device: where the model runs.
        supported: what the plugin supports.
        by_kernels: whether the native kernels may compute all that they can; other ways are slow in bfloat16 on a CPU
            without instructions for it.
        packs: whether the native kernels may compute linear layers.

    Raises:
        InvalidSettingError: there is no such encoding, or the model or the checkpoint does not support it.
    """
    may_pack = SupportedEncoding.packed in supported
    can_pack = may_pack and device.type == "cpu" and _has_packed_form(weights)
    allowed = [encoding for encoding in supported if encoding is not SupportedEncoding.packed or can_pack]
    runs_packed = can_pack and packs and NativeKernels(device, torch.bfloat16).obstacle is None
    if runs_packed and requested in ("auto", weights.rounding):
        return SupportedEncoding.packed
    if requested == "auto":
        chosen = _fitting(weights, device, by_kernels)
        return chosen if chosen in allowed else next(iter(allowed), chosen)
    if requested == SupportedEncoding.packed and may_pack and not can_pack:
        raise InvalidSettingError(
            "no weight can stay as it is in the file",
            found=f"dtype 'packed' for {weights.format} on {device}",
            allowed="on a CPU a GGUF file with tensors of Q4_0, Q4_1, Q4_K, Q5_K, Q6_K, Q8_0 or MXFP4, "
            "or a checkpoint that is quantized to 4 or 8 bits",
            cure="Leave dtype at auto.",
        )
    if requested not in allowed:
        names = ["auto", *map(str, allowed)]
        raise InvalidSettingError("the dtype is not supported", found=requested, allowed=names)
    return SupportedEncoding(requested)


def _has_packed_form(weights: Weights) -> bool:
    return any(tensor.stored is not None and tensor.stored.type.packing is not None for tensor in weights.values())


def _fitting(weights: Weights, device: torch.device, by_kernels: bool) -> SupportedEncoding:
    sizes: dict[torch.dtype, int] = {}
    for tensor in weights.values():
        if not tensor.dtype.is_floating_point:
            continue
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.num_elements
    dtype = torch.bfloat16 if weights.is_quantized else max(sizes, key=lambda key: sizes[key], default=torch.float32)
    by_kernels = by_kernels and NativeKernels(device, torch.bfloat16).obstacle is None
    if device.type == "cpu" and (dtype is torch.float16 or not (by_kernels or _cpu_has_bfloat16())):
        dtype = torch.float32
    return next((e for e in SupportedEncoding if torch_dtype(e) is dtype), SupportedEncoding.float32)


def _cpu_has_bfloat16() -> bool:
    """Whether torch's products are faster in bfloat16 than in float32 here."""
    capabilities: Mapping[str, object] = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))
