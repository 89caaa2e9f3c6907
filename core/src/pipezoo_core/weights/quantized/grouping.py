"""Which group of a quantized weight each of its columns belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from pipezoo_core.errors import CorruptCheckpointError
from pipezoo_core.weights.base import LazyTensor
from pipezoo_core.weights.quantized.format import checked_part

__all__ = ["column_groups", "group_sizes", "groups_in_order"]


def group_sizes(name: str, num_columns: int, group_size: int) -> tuple[int, int]:
    """Returns the columns of a group, and how many groups a row has.

    Args:
        name: of the weight.
        num_columns: in_features.
        group_size: as the config says; -1 for one group.

    Raises:
        CorruptCheckpointError: it is no size.
    """
    group = num_columns if group_size == -1 else group_size
    if group < 1:
        raise CorruptCheckpointError(
            f"{name} has groups without columns, by the quantization_config",
            found=group_size,
            allowed="1, or more, or -1",
        )
    return group, -(-num_columns // group)


@lru_cache(maxsize=256)
def groups_in_order(num_columns: int, group: int) -> Tensor:
    """Returns the group of each column, int64 [in_features], where one comes after the other; many weights share it."""
    return torch.arange(num_columns, dtype=torch.int64, device="cpu") // group


def column_groups(
    name: str, parts: Mapping[str, LazyTensor], part: str, num_columns: int, group: int, *, is_needed: bool = False
) -> Tensor:
    """Returns the group of each column, int64 [in_features]: those that a part names, else one after the other.

    These are what `groups_in_order` returns wherever they are the same.

    Args:
        name: of the weight.
        parts: its tensors.
        part: the one that names groups, int32 [in_features]; all of it is -1 where it says nothing.
        num_columns: in_features.
        group: columns of a group.
        is_needed: whether the groups may be in any order, so that the part has to say which.

    Raises:
        CorruptCheckpointError: it is of another shape or dtype, names a group that is not there, or is missing.
    """
    in_order = groups_in_order(num_columns, group)
    is_needed = is_needed and group < num_columns
    if part not in parts and not is_needed:
        return in_order
    named = checked_part(name, parts, part, (torch.int32, torch.int64), (num_columns,)).load().long()
    if torch.equal(named, in_order) or (bool((named == -1).all()) and not is_needed):
        return in_order
    last = int(in_order[-1])
    if not 0 <= int(named.min()) <= int(named.max()) <= last:
        raise CorruptCheckpointError(
            f"{name}: {part} names a group that is not there",
            found=f"{int(named.min())} to {int(named.max())}",
            allowed=f"0 to {last}",
            cure="Download the checkpoint again.",
        )
    return named
