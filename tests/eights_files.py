"""Writes safetensors whose weights have 8 bits, as FP8 checkpoints and compressed-tensors lay them out, or MXFP4."""

from dataclasses import dataclass

import numpy as np
import torch

E4M3 = np.array(
    [
        sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))
        for sign in (1, -1)
        for exponent in range(16)
        for mantissa in range(8)
    ],
    dtype=np.float32,
)
"""What each byte stands for, but 0x7F and 0xFF, which are NaN (Micikevicius et al., 2022, table 1)."""

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float32)


@dataclass(frozen=True)
class Eights:
    """A weight of numbers of 8 bits and scales, and what it stands for, float32 [out, in]."""

    numbers: torch.Tensor
    scale: np.ndarray
    values: np.ndarray


def floats(values, block=None):
    """Rounds a weight [out, in] to e4m3, with a scale for blocks of (rows, columns); None for one scale."""
    height, width = block or values.shape
    rows, columns = (np.arange(size) // step for size, step in zip(values.shape, (height, width), strict=True))
    scale = np.zeros((rows[-1] + 1, columns[-1] + 1), dtype=np.float32)
    np.maximum.at(scale, (rows[:, None], columns), np.abs(values))
    scale = bfloat16(scale / 448)
    each = scale[rows[:, None], columns]
    numbers = torch.from_numpy(values / each).to(torch.float8_e4m3fn)
    return Eights(numbers, scale, E4M3[numbers.view(torch.uint8).numpy()] * each)


def row_floats(values):
    return floats(values, (1, values.shape[1]))


def row_integers(values):
    """Rounds a weight [out, in] to int8 with a scale for each row, as many float32 have it."""
    scale = (np.abs(values).max(1, keepdims=True) / 127).astype(np.float32)
    numbers = np.clip(np.round(values / scale), -128, 127).astype(np.int8)
    return Eights(torch.from_numpy(numbers), scale, numbers.astype(np.float32) * scale)


def bfloat16(values):
    return torch.from_numpy(values).bfloat16().float().numpy()


def fp8_parts(weight):
    """With scales of activations, which a file of `activation_scheme: static` has."""
    scale = torch.from_numpy(weight.scale)
    parts = {"weight_scale_inv": scale} if scale.shape[1] > 1 else {"weight_scale": scale.bfloat16()}
    return {"weight": weight.numbers, **parts, "input_scale": torch.tensor(0.01)}


def row_parts(weight):
    return {"weight": weight.numbers, "weight_scale": torch.from_numpy(weight.scale)}


def fp8_config(block=None):
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic" if block else "static",
        "weight_block_size": block,
        "modules_to_not_convert": ["lm_head"],
    }


def rows_config(kind):
    """Of compressed-tensors, W8A8: rows of x that are rounded at run time."""
    weights = {"num_bits": 8, "type": kind, "symmetric": True, "strategy": "channel"}
    activations = {"num_bits": 8, "type": kind, "symmetric": True, "strategy": "token", "dynamic": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": f"{kind}-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": {"num_bits": 8, "type": "float", "strategy": "tensor"},
    }


def mxfp4(values):
    """Rounds numbers [..., in] to MXFP4.

    Returns:
        blocks uint8 [..., in / 32, 16], scales uint8 [..., in / 32], and what they stand for.
    """
    groups = values.astype(np.float32).reshape(*values.shape[:-1], -1, 32)
    exponents = np.ceil(np.log2(np.maximum(np.abs(groups).max(-1), 1e-30) / 6)).astype(int)
    scale = np.exp2(exponents)[..., None]
    codes = np.abs(groups[..., None] / scale[..., None] - E2M1).argmin(-1).astype(np.uint8)
    blocks, scales = codes[..., ::2] | codes[..., 1::2] << 4, (exponents + 127).astype(np.uint8)
    blocks, scales = (torch.from_numpy(np.ascontiguousarray(part)) for part in (blocks, scales))
    return blocks, scales, (E2M1[codes] * scale).reshape(values.shape)
