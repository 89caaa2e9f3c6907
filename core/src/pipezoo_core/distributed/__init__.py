"""Several processes that compute one model: the ranks of a tensor-parallel group."""

from pipezoo_core.distributed.collectives import DistributedGroup, TensorParallelGroup
from pipezoo_core.distributed.launch import Workers, follow_parent, join_launched, join_local, launched_rank, ranks_here

__all__ = [
    "DistributedGroup",
    "TensorParallelGroup",
    "Workers",
    "follow_parent",
    "join_launched",
    "join_local",
    "launched_rank",
    "ranks_here",
]
