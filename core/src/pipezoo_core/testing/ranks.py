"""The ranks of a model as threads of this process: what processes do, without the seconds that those take."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from pipezoo_core.decoder import DecoderPipelineModel
from pipezoo_core.distributed import DistributedGroup, MeetingPlace, TensorParallelGroup, join_local
from pipezoo_core.testing.subject import Subject

__all__ = ["join", "joined", "loaded_on_ranks"]


def join(folder: Path, rank: int, num_ranks: int, *, timeout: float = 120.0) -> DistributedGroup:
    """Returns the group of a rank, once all have called this.

    Args:
        folder: where they meet; it has the counters already.
        rank: this one.
        num_ranks: how many there are.
        timeout: seconds after which another rank is given up.
    """
    place = MeetingPlace(str(folder / "store"), str(folder / "counters"))
    return join_local(rank, num_ranks, place, torch.device("cpu"), timeout=timeout)


@contextmanager
def joined(
    folder: Path, num_ranks: int, others: Callable[[DistributedGroup], object], *, timeout: float = 120.0
) -> Iterator[DistributedGroup]:
    """Yields rank 0's group, while threads run `others(group)` with the other ranks'.

    Args:
        folder: where they meet, empty.
        num_ranks: how many there are.
        others: what the other ranks do.
        timeout: see `join`.

    Raises:
        Whatever one of them raised.
    """
    errors: list[BaseException] = []
    (folder / "counters").write_bytes(bytes(8 * num_ranks))

    def run(rank: int) -> None:
        group = None
        try:
            group = join(folder, rank, num_ranks, timeout=timeout)
            others(group)
        except BaseException as error:
            errors.append(error)
        finally:
            if group is not None:
                group.close()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(1, num_ranks)]
    for thread in threads:
        thread.start()
    group = join(folder, 0, num_ranks, timeout=timeout)
    try:
        yield group
    finally:
        group.close()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


@contextmanager
def loaded_on_ranks(subject: Subject, num_ranks: int) -> Iterator[Any]:
    """Yields rank 0's model; the other ranks serve it.

    Raises:
        Whatever a rank raised.
    """

    def load(group: TensorParallelGroup) -> Any:
        return subject.load(group=group, tensor_parallel_degree=num_ranks)

    def serve(group: DistributedGroup) -> None:
        model = load(group)
        assert isinstance(model, DecoderPipelineModel)
        model.serve()

    with (
        TemporaryDirectory(prefix="pipezoo-ranks-") as folder,
        joined(Path(folder), num_ranks, serve) as group,
    ):
        yield load(group)
