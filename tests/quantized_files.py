"""Writes safetensors in the layouts of AWQ, GPTQ and compressed-tensors, by NumPy and as plainly as can be."""

import json
import re
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import load_file, save_file

_LINEAR = re.compile(r".*(_proj|_proj_with_mqa|\.w[123])\.weight")


@dataclass(frozen=True)
class Affine:
    """A weight whose number in row r and column c is `(q[r, c] - zero[r, g]) · scale[r, g]`; g is the column's group.

    q and zero are whole numbers from 0 on; scale is float32 of numbers that float16, or bfloat16, has.
    """

    q: np.ndarray
    zero: np.ndarray
    scale: np.ndarray
    groups: np.ndarray

    @property
    def values(self):
        """The weight, float32 [out, in]."""
        return (self.q - self.zero[:, self.groups]).astype(np.float32) * self.scale[:, self.groups]


def affine(values, bits=4, group=32, *, symmetric=False, act_order=False, dtype=torch.float16, seed=0):
    """Rounds a weight [out, in] to so many bits in groups of columns; -1 is one group of all."""
    num_columns, most = values.shape[1], 2**bits - 1
    group = num_columns if group == -1 else group
    groups = np.arange(num_columns) // group
    if act_order:
        np.random.default_rng(seed).shuffle(groups)
    members = [values[:, groups == g] for g in range(groups.max() + 1)]
    low, high = (np.stack([pick(part, axis=1) for part in members], axis=1) for pick in (np.min, np.max))
    if symmetric:
        scale = np.maximum(-low, high) * 2 / most
        zero = np.full(scale.shape, 2 ** (bits - 1))
    else:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        scale = (high - low) / most
        zero = np.round(-low / np.maximum(scale, 1e-9)).astype(int)
    scale = torch.from_numpy(scale.astype(np.float32)).to(dtype).float().numpy()
    q = np.round(values / np.maximum(scale, 1e-9)[:, groups]) + zero[:, groups]
    return Affine(np.clip(q, 0, most).astype(int), np.clip(zero, 0, most), scale, groups)


def in_words(numbers, bits, order=None):
    """Puts numbers along the last dimension into int32, the first in the lowest bits; or those that `order` names."""
    per_word = 32 // bits
    order = range(per_word) if order is None else order
    numbers = np.concatenate([numbers, np.zeros((*numbers.shape[:-1], -numbers.shape[-1] % per_word), dtype=int)], -1)
    words = np.zeros((*numbers.shape[:-1], numbers.shape[-1] // per_word), dtype=np.uint64)
    for place, column in enumerate(order):
        words |= numbers[..., column::per_word].astype(np.uint64) << np.uint64(place * bits)
    return torch.from_numpy(words.astype(np.uint32).view(np.int32))


def awq_parts(weight, dtype=torch.float16):
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {
        "qweight": in_words(weight.q.T, 4, order),
        "qzeros": in_words(weight.zero.T, 4, order),
        "scales": of_type(weight.scale.T, dtype),
    }


def gptq_parts(weight, bits=4, dtype=torch.float16, *, version=1):
    stored = (weight.zero - 1) % 2**bits if version == 1 else weight.zero
    return {
        "qweight": in_words(weight.q, bits).T,
        "qzeros": in_words(stored.T, bits),
        "scales": of_type(weight.scale.T, dtype),
        "g_idx": torch.from_numpy(weight.groups.astype(np.int32)),
    }


def packed_parts(weight, bits=4, dtype=torch.bfloat16, *, symmetric=False, act_order=False):
    """Of compressed-tensors: the numbers with a sign, as many above 0 as below, and that many added."""
    parts = {
        "weight_packed": in_words(weight.q, bits),
        "weight_scale": of_type(weight.scale, dtype),
        "weight_shape": torch.tensor(weight.q.shape),
    }
    if not symmetric:
        parts["weight_zero_point"] = in_words(weight.zero.T, bits).T
    if act_order:
        parts["weight_g_idx"] = torch.from_numpy(weight.groups.astype(np.int32))
    return parts


def of_type(values, dtype):
    return torch.from_numpy(np.ascontiguousarray(values)).to(dtype)


def awq_config(group=32, **changes):
    return {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True, **changes}


def gptq_config(bits=4, group=32, **changes):
    return {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": False, "sym": False, **changes}


def packed_config(bits=4, group=32, *, symmetric=False, **changes):
    strategy = {"strategy": "channel"} if group == -1 else {"strategy": "group", "group_size": group}
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, **strategy}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": groups,
        "ignore": ["lm_head"],
        **changes,
    }


def write_quantized(folder, config, parts_of, affine_of):
    """Quantizes the linear layers of a checkpoint, but not its head.

    Args:
        folder: with a model.safetensors, rewritten.
        config: the `quantization_config`.
        parts_of: makes the tensors of a layer of an `Affine`.
        affine_of: makes an `Affine` of a layer's name and float32 [out, in]; None leaves the layer as it is.

    Returns:
        The layers' names, and the numbers that they have in the file, float32.
    """
    path = folder / "model.safetensors"
    tensors, values = load_file(path), {}
    for name in [name for name in tensors if _LINEAR.fullmatch(name)]:
        weight = affine_of(name, tensors[name].float().numpy())
        if weight is None:
            continue
        del tensors[name]
        for part, tensor in parts_of(weight).items():
            tensors[f"{name.removesuffix('.weight')}.{part}"] = tensor.contiguous()
        values[name] = torch.from_numpy(weight.values)
    save_file(tensors, path, metadata={"format": "pt"})
    edit_config(folder, quantization_config=config)
    return values


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
