"""From the names in a checkpoint to those of `GptOssForCausalLM`, and from stacked experts to single ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from torch import Tensor
from transformers import PretrainedConfig

from pipezoo_core.errors import UnsupportedCheckpointError
from pipezoo_core.weights import LazyTensor, renamed_from_gguf, without_redundant

__all__ = ["adapt_gguf", "adapt_safetensors"]

_STACKED = re.compile(r"(.*\.mlp\.experts)\.(gate_up_proj|down_proj)(_bias)?")
_FUSED = re.compile(r"(.*\.mlp\.experts\.\d+)\.gate_up_proj\.weight")  # of an adapter, an expert's B
_MXFP4 = re.compile(r".*\.mlp\.experts\.\w+_(?:blocks|scales)")
_SINKS = ".self_attn.sinks"
_GGUF_NAMES = {
    "attn_sinks": "self_attn.sinks",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.router",
}


def adapt_safetensors(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """Experts lie in one tensor, their matrices transposed, gate and up in turn; sinks are a tensor without a layer.

    Raises:
        UnsupportedCheckpointError: the experts are in MXFP4.
    """
    packed = sorted(name for name in tensors if _MXFP4.fullmatch(name))
    if packed:
        raise UnsupportedCheckpointError(
            "the checkpoint's experts are in MXFP4, which is not read from safetensors",
            found=packed[:2],
            allowed="experts in bfloat16, float16 or float32",
            cure="Take a checkpoint in bfloat16, or a GGUF file.",
        )
    found: dict[str, LazyTensor] = {}
    for name, tensor in _with_experts_divided(tensors).items():
        stacked = _STACKED.fullmatch(name)
        if stacked is None:
            found[f"{name}.weight" if name.endswith(_SINKS) else name] = tensor
            continue
        experts, kind, bias = stacked.groups()
        for number, expert in enumerate(tensor.unstacked()):
            for part, numbers in _parts(kind, expert):
                whole = numbers if bias else numbers.transposed()
                found[f"{experts}.{number}.{part}.{'bias' if bias else 'weight'}"] = whole
    return without_redundant(found, config)


def adapt_gguf(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """GGUF has names of its own, and gate and up apart."""
    del config
    return _with_experts_divided(renamed_from_gguf(tensors, names=_GGUF_NAMES))


def _with_experts_divided(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Of an expert's gate and up in one, which only adapters have, the rows are in turn."""
    found: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        fused = _FUSED.fullmatch(name)
        if fused is None or tensor.shape[0] % 2:
            found[name] = tensor
            continue
        for first, part in enumerate(("gate_proj", "up_proj")):
            shape = (tensor.shape[0] // 2, *tensor.shape[1:])
            found[f"{fused[1]}.{part}.weight"] = replace(
                tensor, shape=shape, read=_rows_in_turn(tensor, first), read_vectors=None
            )
    return found


def _rows_in_turn(tensor: LazyTensor, first: int) -> Callable[[slice], Tensor]:
    return lambda wanted: tensor.read(slice(2 * wanted.start, 2 * wanted.stop))[first::2]


def _parts(kind: str, expert: LazyTensor) -> Iterator[tuple[str, LazyTensor]]:
    """Yields the layers of an expert whose numbers lie along the last dimension of a tensor."""
    if kind == "down_proj":
        yield kind, expert
        return
    yield "gate_proj", _every_other(expert, 0)
    yield "up_proj", _every_other(expert, 1)


def _every_other(tensor: LazyTensor, first: int) -> LazyTensor:
    *rows, size = tensor.shape

    def read(wanted: slice) -> Tensor:
        return tensor.read(wanted)[:, first::2] if rows else _rows_in_turn(tensor, first)(wanted)

    return replace(tensor, shape=(*rows, size // 2), read=read, read_vectors=None)
