"""From the names in a checkpoint to those of `DeepseekForCausalLM`, and from rotated neighbours to halves."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor
from transformers import PretrainedConfig

from pipezoo_core.errors import UnsupportedCheckpointError
from pipezoo_core.layers import halves
from pipezoo_core.weights import (
    LazyTensor,
    concatenated,
    renamed_from_gguf,
    with_experts_divided,
    without_further_layers,
    without_redundant,
)

__all__ = ["adapt_gguf", "adapt_safetensors"]

_SCALES = ".weight_scale_inv"
_WHOLE, _OF_KEYS, _OF_VALUES = "attn_kv_b.weight", "attn_k_b.weight", "attn_v_b.weight"
_GGUF_NAMES = {
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
    "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
}


def adapt_safetensors(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """The names are the module's own; layers that predict further tokens are left out.

    Rotated rows are the last of each head of the queries, and of the keys' projection. Scales that are still there
    belong to a checkpoint whose config does not say how it is quantized.

    Raises:
        UnsupportedCheckpointError: there are scales of weights.
    """
    scales = sorted(name for name in tensors if name.endswith(_SCALES))
    if scales:
        raise UnsupportedCheckpointError(
            "the checkpoint has scales of weights, and its config.json does not say how these are quantized",
            found=scales[:2],
            allowed="a quantization_config, or weights without scales",
            cure="Take the config.json that belongs to the weights.",
        )
    rope, is_by_neighbours = config.qk_rope_head_dim, getattr(config, "rope_interleave", True)
    head, keys = config.qk_nope_head_dim + rope, config.kv_lora_rank + rope
    found: dict[str, LazyTensor] = {}
    for name, tensor in without_further_layers(tensors, config.num_hidden_layers).items():
        if is_by_neighbours and (".q_proj." in name or ".q_b_proj." in name):
            tensor = tensor.then(_last_to_halves(head, rope), num_rows=head, moves_rows=True)
        elif is_by_neighbours and ".kv_a_proj_with_mqa." in name:
            tensor = tensor.then(_last_to_halves(keys, rope), num_rows=keys, moves_rows=True)
        found[name] = tensor
    return without_redundant(with_experts_divided(found), config)


def adapt_gguf(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """GGUF has names of its own; rotated rows are neighbours, as in DeepSeek's own checkpoints."""
    known = without_further_layers(tensors, config.num_hidden_layers)
    return adapt_safetensors(renamed_from_gguf(_with_whole_matrices(known), names=_GGUF_NAMES), config)


def _with_whole_matrices(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Makes of the matrices of a layer's keys [N, L, Q], turned over, and of its values [N, V, L] one, as it was.

    Files have them so since May 2025, older ones have `attn_kv_b`, [N · (Q + V), L], and some have both.
    """
    found = dict(tensors)
    for name, keys in tensors.items():
        if not name.endswith(_OF_KEYS):
            continue
        whole, of_values = (name.replace(_OF_KEYS, kind) for kind in (_WHOLE, _OF_VALUES))
        values = tensors.get(of_values)
        if whole in tensors:
            found.pop(name)
            found.pop(of_values, None)
        elif values is not None and keys.shape[:1] == values.shape[:1] and len(keys.shape) == len(values.shape) == 3:
            pairs = zip(found.pop(name).unstacked(), found.pop(of_values).unstacked(), strict=True)
            found[whole] = concatenated([part for k, v in pairs for part in (k.transposed(), v)])
    return found


def _last_to_halves(size: int, rotary_dim: int) -> Callable[[Tensor], Tensor]:
    """Returns a function for rows of which the last of each `size` are rotated, neighbours as the pairs."""
    change = halves(size, rotary_dim)

    def reorder(rows: Tensor) -> Tensor:
        groups = rows.unflatten(0, (-1, size))
        turned = change(groups.roll(rotary_dim, 1).flatten(0, 1)).unflatten(0, (-1, size))
        return turned.roll(-rotary_dim, 1).flatten(0, 1)

    return reorder
