"""The LoRA adapters of a pipeline: the same ones in every replica of its model."""

from __future__ import annotations

from collections.abc import Sequence

from pipezoo_core.distributed import interrupts_deferred
from pipezoo_core.errors import InvalidSettingError
from pipezoo_core.lora import LoadedAdapter, LoRAManager

__all__ = ["add_to_all", "managers_with_room", "unload_from_all"]


def managers_with_room(managers: Sequence[LoRAManager | None]) -> list[LoRAManager]:
    """Returns the replicas' managers.

    Raises:
        InvalidSettingError: the model was loaded without room for adapters.
    """
    found = [manager for manager in managers if manager is not None]
    if not found:
        raise InvalidSettingError(
            "the model was loaded without room for adapters",
            cure="Load it with lora_paths, which may be empty, or with max_num_loras.",
        )
    return found


def add_to_all(managers: Sequence[LoRAManager], adapters: Sequence[LoadedAdapter]) -> None:
    """Adds an adapter, as each replica has read it, to all of them or to none. No request may begin meanwhile.

    Raises:
        InvalidSettingError: the name is taken.
    """
    added: list[LoRAManager] = []
    with interrupts_deferred():
        try:
            for manager, adapter in zip(managers, adapters, strict=True):
                manager.add_adapter(adapter)
                added.append(manager)
        except BaseException:
            for manager in added:
                manager.unload_adapter(adapter.name)
            raise


def unload_from_all(managers: Sequence[LoRAManager], name: str) -> None:
    """Forgets an adapter in all replicas, or in none. No request may begin meanwhile.

    Raises:
        AdapterNotFoundError: there is none of this name.
        AdapterInUseError: a request that is not done uses it.
    """
    for manager in managers:
        manager.check_unused(name)
    for manager in managers:
        manager.unload_adapter(name)
