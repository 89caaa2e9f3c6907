"""Which adapter is in which slot, and which requests hold it there. Knows no torch and no weights."""

from __future__ import annotations

from collections import OrderedDict

from pipezoo_core.request import RequestID

__all__ = ["LoRASlots"]


class LoRASlots:
    """Owns a fixed number of slots, one adapter in each.

    A slot whose adapter no running request holds is idle; where an adapter needs a slot and none is empty, the least
    recently used idle one is taken.

    Args:
        num_slots: at least one.
    """

    def __init__(self, num_slots: int) -> None:
        self._empty = list(range(num_slots))[::-1]
        self._slots: OrderedDict[str, int] = OrderedDict()  # least recently used first
        self._held: dict[RequestID, str] = {}

    def __contains__(self, name: str) -> bool:
        """Whether the adapter has a slot."""
        return name in self._slots

    def __getitem__(self, name: str) -> int:
        """The adapter's slot."""
        return self._slots[name]

    def is_held(self, name: str) -> bool:
        """Whether a running request holds the adapter."""
        return name in self._held.values()

    def claim(self, name: str) -> int | None:
        """Gives the adapter a slot, at the cost of an idle one if need be, and makes it the last one used.

        Returns:
            The slot, or None where requests hold all of them.
        """
        if name not in self._slots:
            slot = self._empty.pop() if self._empty else self._evict()
            if slot is None:
                return None
            self._slots[name] = slot
        self._slots.move_to_end(name)
        return self._slots[name]

    def _evict(self) -> int | None:
        idle = next((name for name in self._slots if not self.is_held(name)), None)
        return None if idle is None else self._slots.pop(idle)

    def hold(self, name: str, request_id: RequestID) -> None:
        """Keeps the adapter in its slot until the request releases it."""
        assert name in self._slots
        self._held[request_id] = name

    def release(self, request_id: RequestID) -> None:
        """Notes that a request is through. Does nothing for one that holds no adapter."""
        name = self._held.pop(request_id, None)
        if name is not None:
            self._slots.move_to_end(name)  # it was in use until now

    def forget(self, name: str) -> None:
        """Empties the slot of an idle adapter. Does nothing for one that has none."""
        assert not self.is_held(name)
        slot = self._slots.pop(name, None)
        if slot is not None:
            self._empty.append(slot)
