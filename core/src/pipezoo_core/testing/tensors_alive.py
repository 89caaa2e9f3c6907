"""How many bytes of tensors are alive at once while something is computed."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

__all__ = ["PeakOfTensors"]


class PeakOfTensors(TorchDispatchMode):
    """Counts what operations return, from the time that they do to the time that nobody has it any more.

    What an operation takes for itself meanwhile is not seen.

    Attributes:
        peak: the most bytes so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.peak = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Computes what was asked for, and counts its results."""
        del types
        result = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage()._cdata for tensor in tree_iter((args, kwargs)) if _has_storage(tensor)}
        for tensor in tree_iter(result):
            if _has_storage(tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in given and storage._cdata not in self._alive:
                    self._alive[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self._alive.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self._alive.values()))
        return result


def _has_storage(value: object) -> bool:
    return isinstance(value, Tensor) and not value.is_mkldnn
