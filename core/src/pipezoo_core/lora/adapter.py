"""One adapter's files, as PEFT writes them: adapter_config.json and adapter_model.safetensors.

Read is what changes linear layers by `B A · scaling` and nothing else. Whatever else a config asks for, and every
tensor that is no A or B of a layer, is refused with its name: an adapter is never applied in part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from pipezoo_core.config_entries import NUMBER
from pipezoo_core.errors import (
    CorruptCheckpointError,
    ModelNotFoundError,
    UnsafeCheckpointError,
    UnsupportedAdapterError,
    shown,
)
from pipezoo_core.file_names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, is_hub_id, pickles_in
from pipezoo_core.hub_download import download_files
from pipezoo_core.json_file import read_json_object
from pipezoo_core.local_file import is_folder, local_path, readable
from pipezoo_core.lora.expert_adapters import EXPERT, is_stacked, of_each_expert, stacked_name
from pipezoo_core.lora.layer_patterns import LayerPatterns
from pipezoo_core.weights import LazyTensor, open_safetensors

__all__ = ["LoRAModel", "LoRAWeights", "name_and_path", "open_adapter"]

_FORMS = f'a folder with {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}, or a Hub id "org/name"'
_TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_(A|B)\.weight")

# What a config may say without a change to the result: notes, training, and which layers (the tensors say that).
_WITHOUT_EFFECT = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha",
    "lora_dropout", "lora_ga_config", "megatron_core", "peft_version", "qalora_group_size", "r", "rank_pattern",
    "revision", "runtime_config", "target_modules", "target_parameters", "task_type", "use_rslora",
}  # fmt: skip
# Other ways to begin (PiSSA, OLoRA, LoftQ, …) change the model's own weights, too, unless converted when saved.
_READ = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
    "peft_type": ("LORA",),
}
_OFF: tuple[object, ...] = (None, False, [], {})


class _AdapterConfig(BaseModel, extra="ignore", allow_inf_nan=False):
    """The numbers in adapter_config.json; PEFT's own defaults."""

    r: Annotated[int, NUMBER] = Field(default=8, ge=1)
    lora_alpha: Annotated[float, NUMBER] = 8
    use_rslora: bool = False
    rank_pattern: dict[str, Annotated[int, NUMBER, Field(ge=1)]] = {}
    alpha_pattern: dict[str, Annotated[float, NUMBER]] = {}
    target_parameters: list[str] | None = None


@dataclass(frozen=True, slots=True)
class LoRAWeights:
    """What an adapter adds to one linear layer: `x Aᵀ Bᵀ · scaling`.

    Attributes:
        a: [rank, in_features].
        b: [out_features, rank].
        scaling: alpha / rank, or alpha / √rank with rsLoRA (Kalajdzievski, 2023).
        num_experts: how many it was stacked with, itself included; None for a layer that was by itself.
    """

    a: LazyTensor
    b: LazyTensor
    scaling: float
    num_experts: int | None = None


@dataclass(frozen=True, slots=True)
class LoRAModel:
    """An adapter, its weights still on disk.

    Attributes:
        name: by which requests ask for it.
        path: its folder.
        layers: by the name of the layer in the model that was trained, e.g. `model.layers.0.self_attn.q_proj`, or
            `model.layers.0.mlp.experts.3.down_proj` of one expert among those that are stacked there.
    """

    name: str
    path: Path
    layers: Mapping[str, LoRAWeights]

    @property
    def has_experts(self) -> bool:
        """Whether any of its layers is an expert's."""
        return any(EXPERT.search(name) for name in self.layers)

    @property
    def rank(self) -> int:
        """The greatest rank of its layers."""
        return max(weights.a.shape[0] for weights in self.layers.values())


def name_and_path(lora_path: str) -> tuple[str, str]:
    """Splits `name=path`; what has no name is its own, and so is a folder whose path has an equals sign.

    Raises:
        ModelNotFoundError: it is no text.
    """
    if not isinstance(lora_path, str):
        raise ModelNotFoundError("an adapter is found by text", found=shown(lora_path), allowed=_FORMS)
    if is_folder(local_path(lora_path)):
        return lora_path, lora_path
    name, equals, path = lora_path.partition("=")
    return (name, path) if equals else (lora_path, lora_path)


def open_adapter(lora_path: str, *, gated_experts: bool | None = None) -> LoRAModel:
    """Reads an adapter's config and the header of its weights.

    Args:
        lora_path: a folder or a Hub id, or `name=` and one of these.
        gated_experts: whether the model's experts have gates; None where that is not known.

    Raises:
        ModelNotFoundError, GatedModelError, HubUnreachableError: the files cannot be had.
        CorruptCheckpointError: a file is damaged.
        UnsafeCheckpointError: there are only pickle weights.
        UnsupportedAdapterError: it is no LoRA adapter, or changes more than linear layers.
    """
    name, path = name_and_path(lora_path)
    folder = _folder(path)
    raw = _read_config(folder)
    _check_kind(raw, folder)
    try:
        config = _AdapterConfig(**raw)
    except ValidationError as error:
        raise CorruptCheckpointError(
            f"{folder / ADAPTER_CONFIG} is not sound", found=error.errors()[0]["loc"]
        ) from error
    pairs = _pairs(_open_weights(folder), folder)
    return LoRAModel(name, folder, _layers(pairs, config, folder, gated_experts))


def _folder(path: str) -> Path:
    folder = local_path(path)
    if is_folder(folder):
        return folder
    if is_hub_id(path):
        return download_files(path, None, (ADAPTER_CONFIG, ADAPTER_WEIGHTS))
    raise ModelNotFoundError(
        f"{path!r} is neither a folder nor a name on the Hub",
        allowed=_FORMS,
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / ADAPTER_CONFIG
    with readable(folder):
        if not path.is_file():
            raise ModelNotFoundError(
                f"{folder} has no {ADAPTER_CONFIG}", cure="Give the folder that PEFT saved the adapter to."
            )
    return read_json_object(path)


def _check_kind(config: Mapping[str, Any], folder: Path) -> None:
    """Refuses what is not read, entries that are unknown here included: they may be ways to compute of a later PEFT."""
    asked = [
        f"{name}={value!r}"
        for name, value in {"peft_type": None, **config}.items()
        if name not in _WITHOUT_EFFECT and value not in _READ.get(name, _OFF)
    ]
    if asked:
        raise UnsupportedAdapterError(
            f"the adapter {folder} is of a kind that is not served",
            found=asked,
            allowed="LoRA and rsLoRA of linear layers, bias none, on the model's own weights",
        )


def _open_weights(folder: Path) -> Mapping[str, LazyTensor]:
    if (folder / ADAPTER_WEIGHTS).is_file():
        return open_safetensors([folder / ADAPTER_WEIGHTS])
    pickles = pickles_in(folder)
    if pickles:
        raise UnsafeCheckpointError(
            f"{folder} holds only pickle weights, which can run code when loaded",
            found=pickles,
            allowed=ADAPTER_WEIGHTS,
            cure="Save the adapter again with safe_serialization=True.",
        )
    raise ModelNotFoundError(f"{folder} has no {ADAPTER_WEIGHTS}")


def _pairs(tensors: Mapping[str, LazyTensor], folder: Path) -> dict[str, dict[str, LazyTensor]]:
    """Returns A and B by the names of their layers."""
    found: dict[str, dict[str, LazyTensor]] = {}
    strangers = []
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name)
        if match and len(tensor.shape) == 2 and tensor.dtype.is_floating_point:
            found.setdefault(match[1], {})[match[2]] = tensor
        else:
            strangers.append(name)
    if strangers or not found:
        raise UnsupportedAdapterError(
            f"the adapter {folder} holds other tensors than the A and B of linear layers",
            found=strangers,
            allowed="base_model.model.<layer>.lora_A.weight and …lora_B.weight",
        )
    return found


def _layers(
    pairs: Mapping[str, Mapping[str, LazyTensor]], config: _AdapterConfig, folder: Path, gated: bool | None
) -> dict[str, LoRAWeights]:
    ranks = LayerPatterns(config.rank_pattern, f"the rank_pattern of {folder / ADAPTER_CONFIG}")
    alphas = LayerPatterns(config.alpha_pattern, f"the alpha_pattern of {folder / ADAPTER_CONFIG}")
    load = lru_cache(maxsize=1)(LazyTensor.load)  # B of all experts of one layer is kept until the next is read
    layers = {}
    for layer, pair in pairs.items():
        targets = config.target_parameters or ()
        name = stacked_name(layer, pairs, targets, gated=gated) if is_stacked(layer) else layer
        if name is None:
            raise UnsupportedAdapterError(
                f"the adapter {folder} does not say which parameters of the experts it changes",
                found=f"{layer}, target_parameters {shown(config.target_parameters)}",
                allowed="gate_up_proj or up_proj, down_proj, or both",
            )
        rank = ranks.find(name, config.r)
        alpha = alphas.find(name, config.lora_alpha)
        scaling = alpha / (rank**0.5 if config.use_rslora else rank)
        is_one = name == layer
        if pair.keys() != {"A", "B"} or not _is_of_rank(pair["A"].shape[0], pair["B"].shape[1], rank, is_one=is_one):
            raise CorruptCheckpointError(
                f"the adapter {folder} does not fit its {ADAPTER_CONFIG}",
                found=f"{layer}: " + ", ".join(f"{which} {list(tensor.shape)}" for which, tensor in pair.items()),
                allowed=f"A [{rank}, in_features] and B [out_features, {rank}]" + ("" if is_one else " of each expert"),
            )
        if is_one:
            layers[layer] = LoRAWeights(pair["A"], pair["B"], scaling)
            continue
        experts, _, parameter = name.rpartition(".")
        of_experts = of_each_expert(pair["A"], pair["B"], rank, load)
        for number, (a, b) in enumerate(of_experts):
            layers[f"{experts}.{number}.{parameter}"] = LoRAWeights(a, b, scaling, len(of_experts))
    return layers


def _is_of_rank(num_rows: int, num_columns: int, rank: int, *, is_one: bool) -> bool:
    return num_rows == num_columns and (num_rows == rank if is_one else num_rows > 0 and num_rows % rank == 0)
