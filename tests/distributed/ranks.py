"""The ranks of a model as threads of the test's process: what processes do, without the seconds that those take."""

import threading
from contextlib import contextmanager

import torch
from tiny_models import load_model

from pipezoo_core.distributed import MeetingPlace, join_local

CPU = torch.device("cpu")


def join(folder, rank, num_ranks, **settings):
    place = MeetingPlace(str(folder / "store"), str(folder / "counters"))
    return join_local(rank, num_ranks, place, CPU, **{"timeout": 60.0, **settings})


@contextmanager
def joined(folder, num_ranks, others, **settings):
    """Yields rank 0's group, while threads run `others(group)` with the other ranks'. Their errors are raised here."""
    errors = []
    (folder / "counters").write_bytes(bytes(8 * num_ranks))

    def run(rank):
        group = None
        try:
            group = join(folder, rank, num_ranks, **settings)
            others(group)
        except BaseException as error:
            errors.append(error)
        finally:
            if group is not None:
                group.close()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(1, num_ranks)]
    for thread in threads:
        thread.start()
    group = join(folder, 0, num_ranks, **settings)
    try:
        yield group
    finally:
        group.close()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


@contextmanager
def loaded_on_ranks(num_ranks, folder, model_class, checkpoint, huggingface_config, adapter, **settings):
    """Yields rank 0's model; the other ranks serve it."""

    def load(group):
        return load_model(
            model_class, checkpoint, huggingface_config, adapter, group=group, tensor_parallel_degree=num_ranks,
            **settings,
        )  # fmt: skip

    folder.mkdir()
    with joined(folder, num_ranks, lambda group: load(group).serve()) as group:
        yield load(group)
