"""Memory on every device of a model for its collectives."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from pipezoo_core.distributed import SIGNAL_BUFFER_BYTES

__all__ = ["AlwaysSignalBuffersMixin", "make_signal_buffers"]


def make_signal_buffers(devices: Sequence[torch.device]) -> list[Tensor]:
    """Returns a uint8 tensor of 1 MiB per device."""
    return [torch.zeros(SIGNAL_BUFFER_BYTES, dtype=torch.uint8, device=device) for device in devices]


class AlwaysSignalBuffersMixin:
    """For models whose embedding or head always runs a collective: signal buffers on a single device, too.

    A name of MAX's; here collectives go through the group of the session, see `distributed`.

    Put it before `PipelineModel` in the bases.

    Attributes:
        devices: of the model, which sets them.
    """

    devices: list[torch.device]

    @property
    def signal_buffers(self) -> list[Tensor]:
        """A uint8 tensor of 1 MiB per device, made on first use."""
        return self._signal_buffers

    @cached_property
    def _signal_buffers(self) -> list[Tensor]:
        return make_signal_buffers(self.devices)
