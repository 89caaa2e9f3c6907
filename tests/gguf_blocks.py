"""Quantizes to GGUF's types, those too that the `gguf` package reads and does not write, as plainly as can be."""

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

K_TYPES = (Type.Q4_K, Type.Q5_K, Type.Q6_K)


def as_q4_k_m(name):
    """The types of a Q4_K_M file: more bits for values, the last matrix of feed-forward layers, and the head."""
    if "ffn_gate_inp" in name:
        return Type.F32
    six = ("attn_v.weight", "ffn_down.weight", "ffn_down_exps.weight")
    return Type.Q6_K if name.endswith(six) or name in ("output.weight", "token_embd.weight") else Type.Q4_K


def quantized(values, type_):
    """Returns float32 [..., in_features] in the blocks of a type, uint8 [..., bytes]."""
    if type_ not in K_TYPES:
        return gguf.quants.quantize(np.ascontiguousarray(values, dtype=np.float32), type_)
    blocks = np.asarray(values, dtype=np.float32).reshape(-1, 256)
    packed = _with_signs(blocks) if type_ is Type.Q6_K else _with_minima(blocks, type_)
    return packed.reshape(*values.shape[:-1], -1)


def as_quantized(values, type_):
    """Returns the numbers that the blocks stand for."""
    return gguf.quants.dequantize(quantized(values, type_), type_).reshape(values.shape)


def _half(numbers_B1):
    return numbers_B1.astype(np.float16).view(np.uint8)


def _divided(numbers, steps):
    """Zero where the step is."""
    return numbers / np.where(steps > 0, steps, 1) * (steps > 0)


def _levels(numbers_BG, most):
    """Rounds numbers above 0 to whole multiples of a step per block, the greatest of them to `most`."""
    steps_B1 = (numbers_BG.max(1, keepdims=True) / most).astype(np.float16).astype(np.float32)
    return steps_B1, np.clip(np.ceil(_divided(numbers_BG, steps_B1)), 0, most).astype(np.uint8)


def _with_minima(blocks, type_):
    groups = blocks.reshape(-1, 8, 32)
    most = 15 if type_ is Type.Q4_K else 31
    minimum_steps, minima = _levels(np.maximum(-groups.min(2), 0), 63)
    lowest = minima * minimum_steps
    scale_steps, scales = _levels((groups.max(2) + lowest).clip(0) / most, 63)
    widths = (scales * scale_steps)[..., None]
    q = np.round((groups + lowest[..., None]) / np.where(widths > 0, widths, 1))
    q = np.clip(q, 0, most).astype(np.uint8)
    low_scales, high_scales, low_minima, high_minima = scales[:, :4], scales[:, 4:], minima[:, :4], minima[:, 4:]
    six = [
        low_scales | high_scales >> 4 << 6,
        low_minima | high_minima >> 4 << 6,
        high_scales & 15 | (high_minima & 15) << 4,
    ]
    low = (q[:, 0::2] & 15 | (q[:, 1::2] & 15) << 4).reshape(-1, 128)
    fifth = [] if type_ is Type.Q4_K else [sum((q[:, g] >> 4) << g for g in range(8)).astype(np.uint8)]
    return np.concatenate([_half(scale_steps), _half(minimum_steps), *six, *fifth, low], axis=1)


def _with_signs(blocks):
    groups = blocks.reshape(-1, 16, 16)
    group_widths = np.abs(groups).max(2) / 31
    steps = (group_widths.max(1, keepdims=True) / 127).astype(np.float16).astype(np.float32)
    scales = np.ceil(_divided(group_widths, steps)).clip(0, 127).astype(np.int8)
    widths = (scales * steps)[..., None]
    q = np.clip(np.round(groups / np.where(widths > 0, widths, 1)), -32, 31) + 32
    lower, upper = [], []
    for half in q.astype(np.uint8).reshape(-1, 2, 4, 32).swapaxes(0, 1):
        first, second, third, fourth = half.swapaxes(0, 1)
        lower += [first & 15 | (third & 15) << 4, second & 15 | (fourth & 15) << 4]
        upper.append(first >> 4 | second >> 4 << 2 | third >> 4 << 4 | fourth >> 4 << 6)
    return np.concatenate([*lower, *upper, scales.view(np.uint8), _half(steps)], axis=1)
