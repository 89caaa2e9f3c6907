"""The names of a decoder's tensors in GGUF files, and in the modules of Llama-like models."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pipezoo_core.errors import CorruptCheckpointError
from pipezoo_core.layers import halves
from pipezoo_core.weights.base import LazyTensor
from pipezoo_core.weights.fused_experts import with_experts_divided

__all__ = ["as_vector", "in_halves", "logarithm_of_rates", "renamed_from_gguf", "with_a_channel"]

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_STACKED = {
    "ffn_gate_exps": "gate_proj",
    "ffn_up_exps": "up_proj",
    "ffn_gate_up_exps": "gate_up_proj",  # in place of these two, where the converter was told to
    "ffn_down_exps": "down_proj",
}
_OF_ONE_EXPERT = {"ffn_gate": "gate_proj", "ffn_up": "up_proj", "ffn_down": "down_proj"}
_LAYER = re.compile(r"blk\.(\d+)\.")
_KIND = re.compile(r"(.+?)(?:\.(\d+))?\.(weight|bias)")
_TABLES = ("rope_factors_long.weight", "rope_factors_short.weight", "rope_freqs.weight")  # the config has them


def renamed_from_gguf(
    tensors: Mapping[str, LazyTensor],
    changes: Mapping[str, Callable[[LazyTensor], LazyTensor]] | None = None,
    names: Mapping[str, str] | None = None,
    layers: str = "model.layers",
    experts: str = "mlp.experts",
) -> dict[str, LazyTensor]:
    """Returns tensors by the names of a module: `blk.3.attn_q.weight` is `model.layers.3.self_attn.q_proj.weight`.

    Stacked experts become one tensor each: `blk.3.ffn_up_exps.weight` is `model.layers.3.mlp.experts.0.up_proj.weight`
    and so on, whatever `changes` and `names` say. The first files with experts have one tensor each already,
    `blk.3.ffn_up.0.weight`. A name that is not known stays, and is reported as left over; the factors of RoPE do not,
    which the config has.

    Args:
        tensors: of a GGUF file.
        changes: what becomes of those of a kind, e.g. of `attn_q`, or of a whole name, by the same word as in `names`.
        names: of kinds that are not Llama's, or are called otherwise in the module: `{"ffn_norm": "norm_2"}`. So are
            whole names, which a file may have without `weight` or `bias`, and a module: `{"ssm_dt.bias": "dt_bias"}`.
        layers: what the module calls its layers.
        experts: what it calls the experts of a layer.
    """
    found: dict[str, LazyTensor] = {}
    known, changes = {**_NAMES, **(names or {})}, changes or {}
    kinds = known.keys() | _STACKED.keys()
    for name, tensor in tensors.items():
        if name in _TABLES:
            continue
        layer = _LAYER.match(name)
        prefix, own = (f"{layers}.{layer[1]}.", name[layer.end() :]) if layer else ("", name)
        match = _KIND.fullmatch(own)
        kind, number, parameter = match.groups() if match else (own, None, None)
        if own in known:
            found[prefix + known[own]] = _changed(tensor, changes.get(own))
        elif match is None or kind not in (kinds if number is None else _OF_ONE_EXPERT):
            found[name] = tensor
        elif number is not None:
            found[f"{prefix}{experts}.{number}.{_OF_ONE_EXPERT[kind]}.{parameter}"] = tensor
        elif kind in _STACKED:
            stacked = enumerate(tensor.unstacked())
            found |= with_experts_divided(
                {f"{prefix}{experts}.{i}.{_STACKED[kind]}.{parameter}": expert for i, expert in stacked}
            )
        else:
            found[f"{prefix}{known[kind]}.{parameter}"] = _changed(tensor, changes.get(kind))
    return found


def _changed(tensor: LazyTensor, change: Callable[[LazyTensor], LazyTensor] | None) -> LazyTensor:
    return tensor if change is None else change(tensor)


def in_halves(num_heads: int) -> Callable[[LazyTensor], LazyTensor]:
    """Returns what makes of q or k with so many heads, stored for a rotation of neighbours, one for that of halves."""

    def change(tensor: LazyTensor) -> LazyTensor:
        head_dim = tensor.shape[0] // num_heads
        return tensor.then(halves(head_dim), num_rows=head_dim, moves_rows=True)

    return change


def with_a_channel(tensor: LazyTensor) -> LazyTensor:
    """Returns the weight of a convolution over single channels, [D, K] in a file, as [D, 1, K]; a bias as it is."""
    if len(tensor.shape) == 1:
        return tensor
    num_channels, num_taps = tensor.shape
    return LazyTensor((num_channels, 1, num_taps), tensor.dtype, lambda rows: tensor.read(rows).unsqueeze(1))


def as_vector(tensor: LazyTensor) -> LazyTensor:
    """Returns all numbers in one row: of heads a file may have them as [H, 1], of groups as [G, numbers of one]."""
    return LazyTensor((tensor.num_elements,), tensor.dtype, lambda rows: tensor.load().flatten()[rows])


def logarithm_of_rates(tensor: LazyTensor) -> LazyTensor:
    """Returns the logarithms `A_log` [H] of rates of decay, for which a file has `-exp(A_log)`.

    Reading them raises a CorruptCheckpointError where a rate is not below 0.
    """
    return as_vector(tensor).then(_logarithms, num_rows=1)


def _logarithms(rates: Tensor) -> Tensor:
    if not (rates < 0).all():
        raise CorruptCheckpointError(
            "the GGUF file's ssm_a has rates of decay that are none",
            found=rates[~(rates < 0)].tolist(),
            allowed="numbers below 0",
            cure="Convert the model again.",
        )
    return torch.log(-rates)
