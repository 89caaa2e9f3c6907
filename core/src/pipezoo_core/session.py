"""Where a model runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["InferenceSession"]


class InferenceSession:
    """The devices a model runs on.

    Args:
        devices: at least one; the first holds what is not split.
    """

    def __init__(self, devices: Sequence[torch.device]) -> None:
        assert devices, "a session needs a device"
        self.devices = tuple(devices)

    @property
    def device(self) -> torch.device:
        """The first device."""
        return self.devices[0]
