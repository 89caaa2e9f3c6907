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
    packed = np.stack([_with_signs(block) if type_ is Type.Q6_K else _with_minima(block, type_) for block in blocks])
    return packed.reshape(*values.shape[:-1], -1)


def as_quantized(values, type_):
    """Returns the numbers that the blocks stand for."""
    return gguf.quants.dequantize(quantized(values, type_), type_).reshape(values.shape)


def _half(number):
    return np.frombuffer(np.float16(number).tobytes(), dtype=np.uint8)


def _levels(numbers, most):
    """Rounds numbers above 0 to whole multiples of a step, the greatest of them to `most`."""
    step = float(np.float16(numbers.max() / most))
    return step, np.clip(np.ceil(numbers / step) if step else 0 * numbers, 0, most).astype(np.uint8)


def _with_minima(block, type_):
    groups = block.reshape(8, 32)
    most = 15 if type_ is Type.Q4_K else 31
    lowest = np.maximum(-groups.min(1), 0)
    minimum_step, minima = _levels(lowest, 63)
    scale_step, scales = _levels((groups.max(1) + minima * minimum_step).clip(0) / most, 63)
    width = (scales * scale_step)[:, None]
    q = np.round((groups + (minima * minimum_step)[:, None]) / np.where(width > 0, width, 1))
    q = np.clip(q, 0, most).astype(np.uint8)
    six = np.zeros(12, dtype=np.uint8)
    for g in range(4):
        six[g] = scales[g] | scales[g + 4] >> 4 << 6
        six[g + 4] = minima[g] | minima[g + 4] >> 4 << 6
        six[g + 8] = scales[g + 4] & 15 | (minima[g + 4] & 15) << 4
    low = [q[2 * pair] & 15 | (q[2 * pair + 1] & 15) << 4 for pair in range(4)]
    fifth = [] if type_ is Type.Q4_K else [sum((q[g] >> 4) << g for g in range(8)).astype(np.uint8)]
    return np.concatenate([_half(scale_step), _half(minimum_step), six, *fifth, *low])


def _with_signs(block):
    groups = block.reshape(16, 16)
    widths = np.abs(groups).max(1) / 31
    step = float(np.float16(widths.max() / 127))
    scales = np.ceil(widths / step).clip(0, 127).astype(np.int8) if step else np.zeros(16, dtype=np.int8)
    width = (scales * step)[:, None]
    q = np.clip(np.round(groups / np.where(width > 0, width, 1)), -32, 31) + 32
    lower, upper = [], []
    for half in q.astype(np.uint8).reshape(2, 4, 32):
        lower += [half[0] & 15 | (half[2] & 15) << 4, half[1] & 15 | (half[3] & 15) << 4]
        upper.append(half[0] >> 4 | half[1] >> 4 << 2 | half[2] >> 4 << 4 | half[3] >> 4 << 6)
    return np.concatenate([*lower, *upper, scales.view(np.uint8), _half(step)])
