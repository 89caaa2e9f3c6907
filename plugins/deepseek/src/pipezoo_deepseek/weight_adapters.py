"""From the names in a checkpoint to those of `DeepseekForCausalLM`, and from rotated neighbours to halves."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor
from transformers import PretrainedConfig

from pipezoo_core.errors import UnsupportedCheckpointError
from pipezoo_core.layers import halves
from pipezoo_core.weights import LazyTensor, with_experts_divided, without_redundant

__all__ = ["adapt_safetensors"]

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_SCALES = ".weight_scale_inv"


def adapt_safetensors(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """The names are the module's own; layers that predict further tokens are left out.

    Rotated rows are the last of each head of the queries, and of the keys' projection.

    Raises:
        UnsupportedCheckpointError: the weights are numbers of 8 bits with scales.
    """
    scales = sorted(name for name in tensors if name.endswith(_SCALES))
    if scales:
        raise UnsupportedCheckpointError(
            "the checkpoint's weights are numbers of 8 bits with scales, which are not read",
            found=scales[:2],
            allowed="weights in bfloat16, float16 or float32",
            cure="Take a checkpoint in bfloat16.",
        )
    rope, is_by_neighbours = config.qk_rope_head_dim, getattr(config, "rope_interleave", True)
    head, keys = config.qk_nope_head_dim + rope, config.kv_lora_rank + rope
    found: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        layer = _LAYER.match(name)
        if layer is not None and int(layer[1]) >= config.num_hidden_layers:
            continue
        if is_by_neighbours and (".q_proj." in name or ".q_b_proj." in name):
            tensor = tensor.then(_last_to_halves(head, rope), num_rows=head)
        elif is_by_neighbours and ".kv_a_proj_with_mqa." in name:
            tensor = tensor.then(_last_to_halves(keys, rope), num_rows=keys)
        found[name] = tensor
    return without_redundant(with_experts_divided(found), config)


def _last_to_halves(size: int, rotary_dim: int) -> Callable[[Tensor], Tensor]:
    """Returns a function for rows of which the last of each `size` are rotated, neighbours as the pairs."""
    change = halves(size, rotary_dim)

    def reorder(rows: Tensor) -> Tensor:
        groups = rows.unflatten(0, (-1, size))
        turned = change(groups.roll(rotary_dim, 1).flatten(0, 1)).unflatten(0, (-1, size))
        return turned.roll(-rotary_dim, 1).flatten(0, 1)

    return reorder
