"""The ranks of a model as threads of this process: what processes do, without the seconds that those take."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from pipezoo_core.decoder import DecoderPipelineModel
from pipezoo_core.distributed import DistributedGroup, MeetingPlace, TensorParallelGroup, join_local
from pipezoo_core.testing.subject import Subject

__all__ = ["loaded_on_ranks"]

_TIMEOUT = 120.0  # seconds, after which another rank is given up


@contextmanager
def loaded_on_ranks(subject: Subject, num_ranks: int) -> Iterator[Any]:
    """Yields rank 0's model; the other ranks serve it.

    Raises:
        Whatever a rank raised.
    """

    def load(group: TensorParallelGroup) -> Any:
        return subject.load(group=group, tensor_parallel_degree=num_ranks)

    with TemporaryDirectory(prefix="pipezoo-ranks-") as name:
        folder, errors = Path(name), list[BaseException]()
        (folder / "counters").write_bytes(bytes(8 * num_ranks))

        def follow(rank: int) -> None:
            group = None
            try:
                group = _join(folder, rank, num_ranks)
                model = load(group)
                assert isinstance(model, DecoderPipelineModel)
                model.serve()
            except BaseException as error:
                errors.append(error)
            finally:
                if group is not None:
                    group.close()

        threads = [threading.Thread(target=follow, args=(rank,), daemon=True) for rank in range(1, num_ranks)]
        for thread in threads:
            thread.start()
        group = _join(folder, 0, num_ranks)
        try:
            yield load(group)
        finally:
            group.close()
            for thread in threads:
                thread.join()
    if errors:
        raise errors[0]


def _join(folder: Path, rank: int, num_ranks: int) -> DistributedGroup:
    place = MeetingPlace(str(folder / "store"), str(folder / "counters"))
    return join_local(rank, num_ranks, place, torch.device("cpu"), timeout=_TIMEOUT)
