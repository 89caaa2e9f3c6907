"""Where a model runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipezoo_core.distributed import TensorParallelGroup

__all__ = ["InferenceSession"]


class InferenceSession:
    """The devices a model runs on.

    Args:
        devices: at least one; of several ranks each has one, in their order.
        group: the ranks that compute the model together; None where this process is alone.
    """

    def __init__(self, devices: Sequence[torch.device], group: TensorParallelGroup | None = None) -> None:
        self.devices = tuple(devices)
        self.group = group or TensorParallelGroup()
        assert len(devices) >= self.group.size, "each rank has a device"

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.devices[self.group.rank]
