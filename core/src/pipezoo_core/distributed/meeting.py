"""How the ranks of a model find each other, through gloo."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import Store

from pipezoo_core.errors import InvalidSettingError, RankLostError

__all__ = ["TO_MEET", "first_line", "meet"]

TO_MEET = timedelta(minutes=5)
_FOREVER = timedelta(days=365)  # a rank that waits for the next step waits as long as nobody asks anything


def meet(store: Store, rank: int, size: int, network: Mapping[str, str] | None) -> dist.ProcessGroupGloo:
    """Connects a rank with the others.

    Args:
        store: where they leave their addresses.
        rank: of this process.
        size: how many there are.
        network: see `DistributedGroup`.

    Raises:
        InvalidSettingError: others have no way to reach this process.
        RankLostError: the others do not come.
    """
    gloo = dist.ProcessGroupGloo
    options: Any = gloo._Options()  # type: ignore[attr-defined]  # torch's stubs lack it
    options._timeout = TO_MEET
    try:
        options._devices = [gloo.create_device(**network) if network else gloo.create_default_device()]
    except RuntimeError as error:
        raise InvalidSettingError(
            "this process cannot be reached by the others of the model",
            found=f"{network}: {first_line(error)}",
            cure="Set GLOO_SOCKET_IFNAME to the network interface that leads to the other hosts.",
        ) from error
    try:
        group = gloo(store, rank, size, options)
    except RuntimeError as error:
        raise RankLostError(
            "the processes of the model did not all meet",
            found=first_line(error),
            allowed=f"within {TO_MEET.total_seconds():.0f} seconds, each reachable by the others",
            cure="See what the other processes have printed. On several hosts, set GLOO_SOCKET_IFNAME on each to the "
            "network interface that leads to the others.",
        ) from error
    group._set_default_timeout(_FOREVER)
    return group


def first_line(error: BaseException) -> str:
    """Returns the kind of an error, and how its text begins."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]
