"""Which adapters clients have loaded and unloaded, for the engine that takes the place of one that died."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["AdapterRecord"]


class AdapterRecord:
    """How an engine's adapters differ from those that every engine of this server loads by itself."""

    def __init__(self) -> None:
        self._added: dict[str, str] = {}
        self._removed: set[str] = set()  # of those that an engine loads by itself

    def add(self, name: str, path: str) -> None:
        """Notes an adapter that was loaded."""
        self._added[name] = path

    def remove(self, name: str) -> None:
        """Notes an adapter that was unloaded, or cannot be loaded any more."""
        if name in self._added:
            del self._added[name]
        else:
            self._removed.add(name)

    def missing_from(self, names: Sequence[str]) -> list[tuple[str, str | None]]:
        """Returns what makes a new engine's adapters those of the last one, in this order.

        Args:
            names: of the adapters that it has loaded by itself.

        Returns:
            Names to unload, with None, and then names to load, with the path of each.
        """
        unload: list[tuple[str, str | None]] = [(name, None) for name in names if name in self._removed]
        return [*unload, *self._added.items()]
