"""From the names in a checkpoint to those of `GptOssForCausalLM`, and from stacked experts to single ones."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import Tensor
from transformers import PretrainedConfig

from pipezoo_core.weights import LazyTensor, renamed_from_gguf, without_redundant

__all__ = ["adapt_gguf", "adapt_safetensors"]

_STACKED = re.compile(r"(.*\.mlp\.experts)\.(gate_up_proj|down_proj)(_bias|_blocks)?")
_FUSED = re.compile(r"(.*\.mlp\.experts\.\d+)\.gate_up_proj\.weight")  # of an adapter, an expert's B
_SINKS = ".self_attn.sinks"
_GGUF_NAMES = {
    "attn_sinks": "self_attn.sinks",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.router",
}


def adapt_safetensors(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """Experts lie in one tensor, gate and up in turn; sinks are a tensor without a layer.

    The experts' matrices are transposed, but those in MXFP4.
    """
    found: dict[str, LazyTensor] = {}
    for name, tensor in _with_experts_divided(tensors).items():
        stacked = _STACKED.fullmatch(name)
        if stacked is None:
            found[f"{name}.weight" if name.endswith(_SINKS) else name] = tensor
            continue
        experts, kind, form = stacked.groups()
        for number, expert in enumerate(tensor.unstacked()):
            for part, numbers in _parts(kind, expert, in_rows=form is not None):
                whole = numbers if form else numbers.transposed()
                found[f"{experts}.{number}.{part}.{'bias' if form == '_bias' else 'weight'}"] = whole
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
            found[f"{fused[1]}.{part}.weight"] = tensor.every_other(first)
    return found


def _parts(kind: str, expert: LazyTensor, *, in_rows: bool) -> Iterator[tuple[str, LazyTensor]]:
    """Yields the layers of an expert, whose outputs are rows of a tensor or lie along its last dimension."""
    if kind == "down_proj":
        yield kind, expert
        return
    for first, part in enumerate(("gate_proj", "up_proj")):
        yield part, expert.every_other(first) if in_rows else _every_other_column(expert, first)


def _every_other_column(tensor: LazyTensor, first: int) -> LazyTensor:
    num_rows, size = tensor.shape

    def read(wanted: slice) -> Tensor:
        return tensor.read(wanted)[:, first::2]

    return replace(tensor, shape=(num_rows, size // 2), read=read, read_vectors=None)
