"""The LoRA adapters of a pipeline: the same ones in every replica of its model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipezoo_core.errors import InvalidSettingError
from pipezoo_core.interfaces import PipelineModel
from pipezoo_core.lora import LoRAManager

__all__ = ["Adapters"]


class Adapters:
    """Loads and unloads adapters in all replicas, or in none.

    Args:
        models: the replicas.
    """

    def __init__(self, models: Sequence[PipelineModel[Any]]) -> None:
        self._managers = [model.lora_manager for model in models]

    @property
    def names(self) -> list[str]:
        """The names of the loaded adapters; none where the model has no room for any."""
        return [] if self._managers[0] is None else self._managers[0].loras

    def load(self, path: str) -> None:
        """Loads an adapter.

        Raises:
            InvalidSettingError: the name is taken, or the model was loaded without room for adapters.
            What `LoRAManager.load_adapter` raises.
        """
        known = set(self.names)
        managers = self._with_room()
        try:
            for manager in managers:
                manager.load_adapter(path)
        except BaseException:
            for manager in managers:
                for name in set(manager.loras) - known:
                    manager.unload_adapter(name)
            raise

    def unload(self, name: str) -> None:
        """Forgets an adapter. No request may begin meanwhile.

        Raises:
            AdapterNotFoundError: there is none of this name.
            AdapterInUseError: a request that is not done uses it.
            InvalidSettingError: the model was loaded without room for adapters.
        """
        managers = self._with_room()
        for manager in managers:
            manager.check_unused(name)
        for manager in managers:
            manager.unload_adapter(name)

    def _with_room(self) -> list[LoRAManager]:
        managers = [manager for manager in self._managers if manager is not None]
        if not managers:
            raise InvalidSettingError(
                "the model was loaded without room for adapters",
                cure="Load it with lora_paths, which may be empty, or with max_num_loras.",
            )
        return managers
