"""The adapters of a running model: loaded by name, moved into slots when requests need them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import TypeAlias

import torch
from torch import Tensor

from pipezoo_core.config import LoRAConfig
from pipezoo_core.context import TextContext
from pipezoo_core.errors import (
    AdapterInUseError,
    AdapterNotFoundError,
    InvalidSettingError,
    UnsupportedAdapterError,
    shown,
)
from pipezoo_core.lora.adapted_module import AdaptedModule
from pipezoo_core.lora.adapter import LoRAModel, LoRAWeights, open_adapter
from pipezoo_core.lora.expert_adapters import leaves_experts_out
from pipezoo_core.lora.layers import NO_LORA
from pipezoo_core.lora.slots import LoRASlots
from pipezoo_core.process_lock import ProcessLock
from pipezoo_core.request import RequestID
from pipezoo_core.weights import LazyTensor

__all__ = ["LoRAManager", "LoadedAdapter", "resolve_lora_config"]

_DEFAULT_RANK = 16

Rename: TypeAlias = Callable[[Mapping[str, LazyTensor]], dict[str, LazyTensor]]


def resolve_lora_config(config: LoRAConfig) -> LoRAConfig:
    """Fills in what the settings leave open: a slot for each adapter of `lora_paths`, their rank, whether of experts.

    Raises:
        CheckpointError, ModelNotFoundError, GatedModelError, HubUnreachableError: as `LoRAManager.load_adapter`.
    """
    if None not in (config.max_num_loras, config.max_lora_rank, config.lora_experts):
        return config
    adapters, experts = [open_adapter(path) for path in config.lora_paths], config.lora_experts
    return config.updated(
        max_num_loras=config.max_num_loras or max(1, len(adapters)),
        max_lora_rank=config.max_lora_rank or max((adapter.rank for adapter in adapters), default=_DEFAULT_RANK),
        lora_experts=any(adapter.has_experts for adapter in adapters) if experts is None else experts,
    )


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """An adapter in host memory, for one model.

    Attributes:
        name: by which requests ask for it.
        rank: the greatest of its layers.
        serial: which load it was.
        layers: by the names of the module's parts, A [R, I] and B [O, R], the latter times the scaling.
    """

    name: str
    rank: int
    serial: int
    layers: Mapping[str, tuple[Tensor, Tensor]]


class LoRAManager:
    """Owns a model's adapters and the slots that they are computed from.

    A loaded adapter has a name and is kept in host memory, whatever becomes of its files. It is copied into a slot when
    the first request that uses it begins. The order of calls for such a request is `hold`, then `claim`, then
    the steps, at last `release`. Methods may be called from any thread.

    Args:
        config: how many slots, of which rank, and the adapters to load at once; resolved.
        module: that has the slots.
        rename: the checkpoint's adapter: from names of the trained model to those of the module.

    Raises:
        PipezooError: what `load_adapter` raises.
    """

    def __init__(self, config: LoRAConfig, module: AdaptedModule, rename: Rename) -> None:
        assert config.max_num_loras is not None
        assert config.max_lora_rank is not None
        self.max_num_loras = config.max_num_loras
        self.max_lora_rank = config.max_lora_rank
        self._module = module
        self._rename = rename
        self._slots = LoRASlots(self.max_num_loras)
        self._adapters: dict[str, LoadedAdapter] = {}
        self._users: dict[RequestID, str] = {}
        self._serial = count()
        self._lock = ProcessLock()
        for path in config.lora_paths:
            self.load_adapter(path)

    @property
    def loras(self) -> list[str]:
        """The names of the loaded adapters."""
        return list(self._adapters)

    def is_lora(self, name: str) -> bool:
        """Whether an adapter of this name is loaded. A name of MAX's, for callers."""
        return name in self._adapters

    def is_active_lora(self, name: str) -> bool:
        """Whether the adapter is in a slot."""
        return name in self._slots

    def load_adapter(self, path: str) -> None:
        """Loads an adapter, so that requests can name it.

        Args:
            path: a folder or a Hub id, or `name=` and one of these; without a name, this text is the name.

        Raises:
            PipezooError: what `read_adapter` and `add_adapter` raise.
        """
        self.add_adapter(self.read_adapter(path))

    def read_adapter(self, path: str) -> LoadedAdapter:
        """Reads an adapter's files, and checks that it fits the model.

        Args:
            path: as for `load_adapter`.

        Raises:
            ModelNotFoundError, GatedModelError, HubUnreachableError: the files cannot be had.
            CheckpointError: they are damaged, pickles, or ask for what is not served; `UnsupportedAdapterError` where
                the adapter's rank is too great or it does not fit the model.
            ForkedProcessError: the model was loaded in another process.
        """
        self._lock.check()
        lora = open_adapter(path, gated_experts=self._module.gated_experts)
        if lora.rank > self.max_lora_rank:
            raise UnsupportedAdapterError(
                f"the adapter {lora.name!r} has too great a rank",
                found=lora.rank,
                allowed=f"at most {self.max_lora_rank}",
                cure="Load the model with a greater max_lora_rank.",
            )
        if lora.has_experts and not self._module.has_experts:
            raise UnsupportedAdapterError(
                f"the adapter {lora.name!r} changes experts, for which the model was loaded without room",
                cure="Load the model with lora_experts=True.",
            )
        layers = {
            name: (
                weights.a.load().to(self._module.dtype, copy=True),
                (weights.b.load().float() * weights.scaling).to(self._module.dtype),
            )
            for name, weights in self._fit(lora).items()
        }
        return LoadedAdapter(lora.name, lora.rank, next(self._serial), layers)

    def add_adapter(self, adapter: LoadedAdapter) -> None:
        """Lets requests name an adapter that was read here.

        Raises:
            InvalidSettingError: the name is taken.
            ForkedProcessError: the model was loaded in another process.
        """
        with self._lock:
            if adapter.name in self._adapters:
                raise InvalidSettingError(
                    "an adapter of this name is loaded already",
                    found=adapter.name,
                    cure="Unload it first, or give another name: 'name=path'.",
                )
            self._adapters[adapter.name] = adapter

    def check_unused(self, name: str) -> None:
        """Raises what `unload_adapter` would."""
        with self._lock:
            if not isinstance(name, str) or name not in self._adapters:
                raise _not_found(name, self.loras)
            if name in self._users.values():
                raise AdapterInUseError(
                    f"the adapter {name!r} is in use", cure="Wait for its requests, or cancel them."
                )

    def unload_adapter(self, name: str) -> None:
        """Forgets an adapter.

        Raises:
            AdapterNotFoundError: there is none of this name.
            AdapterInUseError: a request that is not done uses it.
        """
        with self._lock:
            self.check_unused(name)
            del self._adapters[name]
            self._slots.forget(name)

    def hold(self, context: TextContext) -> None:
        """Notes that a request uses an adapter, which stays loaded until the request is released.

        Sets the context's `cache_namespace`: what the adapter computed is found by its own requests only, and not by
        those of another adapter that is loaded under the same name later.

        Raises:
            AdapterNotFoundError: no adapter of this name is loaded.
        """
        assert context.lora is not None
        with self._lock:
            if context.lora not in self._adapters:
                raise _not_found(context.lora, self.loras)
            self._users[context.request_id] = context.lora
            context.cache_namespace = f"lora {self._adapters[context.lora].serial}"

    def claim(self, context: TextContext) -> bool:
        """Gives the adapter of a request that begins a slot, until the request leaves it or is released.

        Returns:
            False where running requests use all slots for other adapters.
        """
        if context.lora is None:
            return True
        with self._lock:
            is_active = self.is_active_lora(context.lora)
            slot = self._slots.claim(context.lora)
            if slot is None:
                return False
            if not is_active:
                self._module.fill(slot, self._adapters[context.lora].layers)
            self._slots.hold(context.lora, context.request_id)
        return True

    def leave_slot(self, request_id: RequestID) -> None:
        """Gives back what `claim` gave a request that is to wait; its adapter stays loaded."""
        with self._lock:
            self._slots.release(request_id)

    def release(self, request_id: RequestID) -> None:
        """Notes that a request is through. Does nothing for one that uses no adapter, or is released already."""
        with self._lock:
            self._users.pop(request_id, None)
            self._slots.release(request_id)

    def inputs_of(self, batch: Sequence[TextContext]) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Returns `lora_ids` and `lora_ranks` of a step: of each request its adapter's slot, or `NO_LORA`, and rank.

        Both are int64 [B] and on the host, where it is decided what is computed; None where no request has an adapter.
        """
        if all(context.lora is None for context in batch):
            return None, None
        names = [context.lora for context in batch]
        ids = [NO_LORA if name is None else self._slots[name] for name in names]
        ranks = [0 if name is None else self._adapters[name].rank for name in names]
        ids_B, ranks_B = (torch.tensor(values, dtype=torch.int64, device="cpu") for values in (ids, ranks))
        return ids_B, ranks_B

    def _fit(self, lora: LoRAModel) -> dict[str, LoRAWeights]:
        """Returns an adapter's weights by the names of the module's parts."""
        layers: dict[str, LoRAWeights] = {}
        misfits = []
        for name, weights in lora.layers.items():
            # What the checkpoint's adapter does to the rows of a weight, it does to those of B: it may change their
            # order, and divide what was trained as one layer among several of the module. A is of them all.
            renamed = self._rename({f"{name}.weight": weights.b})
            for weight_name, b in (renamed or {"": weights.b}).items():  # what it drops is found nowhere
                own_name = weight_name.removesuffix(".weight")
                shape = (b.shape[0], weights.a.shape[1])
                target = self._module.targets.get(own_name)
                if target is None:
                    misfits.append(f"{name} is no linear layer that adapters can change")
                elif shape != target.shape:
                    misfits.append(f"{name} is for {list(shape)} instead of {list(target.shape)}")
                elif leaves_experts_out(own_name, weights.num_experts, self._module.targets):
                    misfits.append(f"{name} is the last of {weights.num_experts} experts, and the model has more")
                elif own_name in layers:
                    misfits.append(f"{name} is there twice")
                else:
                    layers[own_name] = replace(weights, b=b)
        if misfits:
            raise UnsupportedAdapterError(
                f"the adapter {lora.name!r} does not fit the model",
                found=misfits,
                cure="Take one that was trained on this model, on linear layers other than the head and routers.",
            )
        return layers


def _not_found(name: str, loaded: list[str]) -> AdapterNotFoundError:
    return AdapterNotFoundError(
        f"no adapter {shown(name)} is loaded",
        allowed=loaded,
        cure="Load the model with lora_paths, or load the adapter with load_adapter.",
    )
