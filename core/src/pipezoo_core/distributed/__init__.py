"""Several processes that compute one model: the ranks of a tensor-parallel group."""

from pipezoo_core.distributed.collectives import DistributedGroup
from pipezoo_core.distributed.group import TensorParallelGroup
from pipezoo_core.distributed.interrupts import interrupts_deferred
from pipezoo_core.distributed.launch import (
    MeetingPlace,
    Workers,
    follow_parent,
    join_launched,
    join_local,
    launched_rank,
    ranks_here,
)
from pipezoo_core.distributed.messages import Message
from pipezoo_core.distributed.portable_errors import decode_error, encode_error
from pipezoo_core.distributed.signals import SIGNAL_BUFFER_BYTES

__all__ = [
    "SIGNAL_BUFFER_BYTES",
    "DistributedGroup",
    "MeetingPlace",
    "Message",
    "TensorParallelGroup",
    "Workers",
    "decode_error",
    "encode_error",
    "follow_parent",
    "interrupts_deferred",
    "join_launched",
    "join_local",
    "launched_rank",
    "ranks_here",
]
