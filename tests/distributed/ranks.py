"""The ranks of a model as threads of the test's process: what processes do, without the seconds that those take."""

import threading
from contextlib import contextmanager

import torch
from tiny_models import load_model

from pipezoo_core.distributed import join_local

CPU = torch.device("cpu")


@contextmanager
def joined(folder, num_ranks, others):
    """Yields rank 0's group, while threads run `others(group)` with the other ranks'. Their errors are raised here."""
    errors = []

    def run(rank):
        group = None
        try:
            group = join_local(rank, num_ranks, folder, CPU)
            others(group)
        except BaseException as error:
            errors.append(error)
        finally:
            if group is not None:
                group.close()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(1, num_ranks)]
    for thread in threads:
        thread.start()
    group = join_local(0, num_ranks, folder, CPU)
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
