"""A tiny model on several ranks, which are threads of the test's process."""

from contextlib import contextmanager

import torch
from tiny_models import load_model

from pipezoo_core.testing.ranks import joined

CPU = torch.device("cpu")


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
