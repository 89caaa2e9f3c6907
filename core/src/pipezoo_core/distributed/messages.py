"""What rank 0 tells the other ranks: a kind of message, and lists of whole numbers."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from enum import IntEnum
from itertools import accumulate, pairwise

import torch
from torch import Tensor

__all__ = ["INLINE", "Message", "decode", "encode"]

INLINE = 1024  # numbers that go with a message's length; most messages have no more


class Message(IntEnum):
    """What the other ranks are to do."""

    end = 0
    step = 1
    fill_slot = 2


def encode(message: Message, lists: Sequence[Sequence[int]]) -> Tensor:
    """Returns a message as int64 [at least INLINE]: its length, its kind, the lists' lengths, the lists."""
    numbers = array("q", [0, message, len(lists), *map(len, lists)])
    for values in lists:
        numbers.extend(values)
    numbers[0] = len(numbers)
    numbers.extend([0] * (INLINE - len(numbers)))
    return torch.frombuffer(numbers, dtype=torch.int64)


def decode(numbers: Tensor) -> tuple[Message, list[list[int]]]:
    """Returns what was given to `encode`."""
    length, message, num_lists = numbers[:3].tolist()
    values = numbers[3:length].tolist()
    ends = accumulate(values[:num_lists], initial=num_lists)
    return Message(message), [values[start:end] for start, end in pairwise(ends)]
