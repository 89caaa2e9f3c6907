"""What llama.cpp's converters make of a checkpoint's tensors: other names, and of some other numbers.

The names are those of the `gguf` package. What becomes of the numbers is written down here, as
`convert_hf_to_gguf.py` of llama.cpp has it: a plugin's own weight adapter, which undoes it, would agree with itself
whatever it did.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gguf
import torch
from torch import Tensor

from pipezoo_core.testing.failures import NotCheckedError

__all__ = ["KNOWN_ARCHITECTURES", "converted"]

KNOWN_ARCHITECTURES = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
"""What the `gguf` package has names of tensors for."""

_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(\w+\.\w+)")
_CONV1D = re.compile(r".*\.(?:c_attn|c_fc|c_proj)\.weight")
_PARTS_OF_LFM2 = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_CORRECTION = "e_score_correction_bias"

Named = Iterator[tuple[str, Tensor]]


def converted(tensors: Mapping[str, Tensor], architecture: str, config: Any) -> dict[str, Tensor]:
    """Returns the tensors that a converter writes into a GGUF file, by their names there.

    Args:
        tensors: of a checkpoint, of text alone.
        architecture: what llama.cpp calls it, one of `KNOWN_ARCHITECTURES`.
        config: what transformers makes of config.json.

    Raises:
        NotCheckedError: the `gguf` package has no name for one of them.
    """
    names = gguf.get_tensor_name_map(KNOWN_ARCHITECTURES[architecture], config.num_hidden_layers)
    change = _CHANGES.get(architecture, _as_they_are)
    found: dict[str, Tensor] = {}
    for name, tensor in _with_experts_stacked(dict(change(tensors, config))).items():
        as_published = name.removeprefix("transformer.")
        known = next((each for each in (name, as_published) if _in_file(each, names)), None)
        if known is None:
            raise NotCheckedError(
                f"the gguf package has no name for {name} in files of {architecture!r}: a method write_gguf of the "
                "test class may write one that has it"
            )
        found[_in_file(known, names)] = tensor.squeeze()
    return found


def _in_file(name: str, names: Any) -> str:
    found: str | None = names.get_name(name, try_suffixes=(".weight", ".bias"))
    return found or ""


def _with_experts_stacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One tensor for all experts of a layer; a bias is called so."""
    found: dict[str, Tensor] = {}
    experts: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _EXPERT.fullmatch(name)
        if match is None:
            found[name.replace(_CORRECTION, "e_score_correction.bias")] = tensor
        else:
            experts.setdefault(f"{match[1]}.{match[3]}", {})[int(match[2])] = tensor
    stacked = {name: torch.stack([of_one[i] for i in range(len(of_one))]) for name, of_one in experts.items()}
    return found | stacked


def _as_they_are(tensors: Mapping[str, Tensor], config: Any) -> Named:
    del config
    yield from tensors.items()


def _with_neighbours(tensors: Mapping[str, Tensor], config: Any) -> Named:
    """The rows of q and k are reordered: the halves of each head become its even and its odd rows."""
    for name, tensor in tensors.items():
        layer = name.split(".")[-2]
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(layer)
        if heads is not None:
            tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        yield name, tensor


def _of_granite_hybrid(tensors: Mapping[str, Tensor], config: Any) -> Named:
    """The decay's rate is there itself, the norm of a Mamba group by group, and gate and up lie apart."""
    has_experts = bool(config.num_local_experts)
    for name, tensor in _with_neighbours(tensors, config):
        layer, _, kind = name.partition(".shared_mlp." if ".shared_mlp." in name else ".block_sparse_moe.")
        place = f"{layer}.mlp.experts" if ".block_sparse_moe." in name else f"{layer}.mlp"
        if ".shared_mlp." in name and has_experts:
            place = f"{layer}.mlp.shared_expert"
        if name.endswith(".mamba.A_log"):
            yield name, -tensor.exp()
        elif name.endswith(".mamba.norm.weight"):
            yield name, tensor.unflatten(0, (config.mamba_n_groups, -1))
        elif kind in ("input_linear.weight", "experts.gate_up_proj"):
            for part, rows in zip(("gate_proj", "up_proj"), tensor.chunk(2, dim=-2), strict=True):
                yield f"{place}.{part}.weight", rows
        elif kind in ("output_linear.weight", "experts.down_proj"):
            yield f"{place}.down_proj.weight", tensor
        else:
            yield name.replace(".dt_bias", ".dt_proj.bias").replace(".router.weight", ".router.layer.weight"), tensor


def _with_the_one(tensors: Mapping[str, Tensor], config: Any) -> Named:
    """To the weights of norms 1 is added."""
    del config
    for name, tensor in tensors.items():
        yield name, tensor + 1 if name.endswith("norm.weight") else tensor


def _sorted_by_part(tensors: Mapping[str, Tensor], config: Any) -> Named:
    """Of a fused layer the rows of all queries come first, then those of all keys, then of all values."""
    heads = config.num_attention_heads
    groups = heads
    if config.model_type == "falcon":
        groups = config.num_kv_heads if config.new_decoder_architecture else 1 if config.multi_query else heads
    for name, tensor in tensors.items():
        if ".query_key_value." in name:
            grouped = tensor.unflatten(0, (groups, heads // groups + 2, -1))
            parts = grouped[:, :-2], grouped[:, -2], grouped[:, -1]
            tensor = torch.cat([part.reshape(-1, *tensor.shape[1:]) for part in parts])
        yield name, tensor


def _with_conv1d_transposed(tensors: Mapping[str, Tensor], config: Any) -> Named:
    del config
    for name, tensor in tensors.items():
        yield name, tensor.T if _CONV1D.fullmatch(name) else tensor


def _with_experts_apart(tensors: Mapping[str, Tensor], config: Any) -> Named:
    """Experts' matrices are transposed, and gate and up, of which a column is the other's neighbour, lie apart."""
    del config
    for name, tensor in tensors.items():
        place, _, kind = name.rpartition(".")
        if not place.endswith(".experts"):
            yield f"{name}.weight" if kind == "sinks" else name, tensor
            continue
        kind, parameter = (kind.removesuffix("_bias"), "bias") if kind.endswith("_bias") else (kind, "weight")
        rows = tensor if parameter == "bias" else tensor.transpose(1, 2)
        if kind == "gate_up_proj":
            yield f"{place}.gate_proj.{parameter}", rows[:, ::2]
            yield f"{place}.up_proj.{parameter}", rows[:, 1::2]
        else:
            yield f"{place}.{kind}.{parameter}", rows


def _of_lfm2_moe(tensors: Mapping[str, Tensor], config: Any) -> Named:
    """Experts have the names of others' files, and the correction for their choice is a bias."""
    del config
    for name, tensor in tensors.items():
        place, _, kind = name.rpartition(".")
        if name.endswith(".experts.gate_up_proj"):
            for part, rows in zip(("gate_proj", "up_proj"), tensor.chunk(2, dim=1), strict=True):
                yield f"{place}.{part}.weight", rows
        elif name.endswith((".experts.down_proj", ".expert_bias")):
            yield f"{name}.bias" if kind == "expert_bias" else f"{name}.weight", tensor
        elif ".experts." in name:
            place, _, kind = place.rpartition(".")
            yield f"{place}.{_PARTS_OF_LFM2[kind]}.weight", tensor
        else:
            yield name, tensor


def _of_nemotron(tensors: Mapping[str, Tensor], config: Any) -> Named:
    """The decay's rate is there itself, the norm of a Mamba group by group; experts have the names of others' files."""
    for name, tensor in tensors.items():
        name = name.replace("model.", "backbone.", 1) if name.startswith("model.") else name
        if name.endswith(".mixer.A_log"):
            yield name, -tensor.exp()
        elif name.endswith(".mixer.norm.weight"):
            yield name, tensor.unflatten(0, (config.n_groups, -1))
        elif ".mixer.experts." in name:
            expert = name.replace("backbone.", "model.").replace(".mixer.", ".mlp.").removesuffix(".weight")
            yield f"{expert}.weight", tensor
        else:
            yield name.replace(".dt_bias", ".dt.bias"), tensor


def _of_qwen3_next(tensors: Mapping[str, Tensor], config: Any) -> Named:
    """Rates as in Granite's files; norms have the 1, but for the one behind the rule; experts and heads lie apart."""
    for name, tensor in tensors.items():
        place, _, kind = name.rpartition(".")
        if kind == "A_log":
            yield name, -tensor.exp()
        elif kind == "dt_bias":
            yield f"{place}.dt_proj.bias", tensor
        elif name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
            yield name, tensor + 1
        elif name.endswith(".in_proj_qkvz.weight"):
            key, heads = config.linear_key_head_dim, config.linear_num_key_heads
            values = config.linear_num_value_heads // heads * config.linear_value_head_dim
            parts = tensor.unflatten(0, (heads, -1)).split([key, key, values, values], dim=1)
            q, k, v, z = (part.flatten(0, 1) for part in parts)
            yield name.replace("qkvz", "qkv"), torch.cat([q, k, v])
            yield name.replace("qkvz", "z"), z
        elif name.endswith(".experts.gate_up_proj"):
            for part, rows in zip(("gate_proj", "up_proj"), tensor.chunk(2, dim=1), strict=True):
                yield f"{place}.{part}.weight", rows
        else:
            yield f"{name}.weight" if name.endswith(".experts.down_proj") else name, tensor


def _of_qwen3_5(tensors: Mapping[str, Tensor], config: Any) -> Named:
    """The value heads of a key head do not lie side by side, but each beside those of the other key heads."""
    heads, size = config.linear_num_key_heads, config.linear_value_head_dim
    num_keys = 2 * heads * config.linear_key_head_dim

    def tiled(rows: Tensor, size: int) -> Tensor:
        return rows.unflatten(0, (heads, -1, size)).transpose(0, 1).flatten(0, 2)

    def change(name: str, tensor: Tensor) -> Tensor:
        kind = name.partition(".linear_attn.")[2].partition(".")[0]
        if kind in ("in_proj_qkv", "conv1d"):
            return torch.cat([tensor[:num_keys], tiled(tensor[num_keys:], size)])
        if kind in ("in_proj_a", "in_proj_b", "A_log", "dt_bias"):
            return tiled(tensor, 1)
        if kind == "out_proj":
            return tiled(tensor.T, size).T
        return tiled(tensor, size) if kind == "in_proj_z" else tensor

    return _of_qwen3_next({name: change(name, tensor) for name, tensor in tensors.items()}, config)


_CHANGES: Mapping[str, Callable[[Mapping[str, Tensor], Any], Named]] = {
    **dict.fromkeys(("arcee", "granite", "granitemoe", "llama", "mistral3", "olmo", "smollm3"), _with_neighbours),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "nemotron"), _with_the_one),
    **dict.fromkeys(("bloom", "falcon", "gptneox"), _sorted_by_part),
    "gpt-oss": _with_experts_apart,
    "gpt2": _with_conv1d_transposed,
    "granitehybrid": _of_granite_hybrid,
    "lfm2moe": _of_lfm2_moe,
    **dict.fromkeys(("nemotron_h", "nemotron_h_moe"), _of_nemotron),
    "qwen3next": _of_qwen3_next,
    **dict.fromkeys(("qwen35", "qwen35moe"), _of_qwen3_5),
}
