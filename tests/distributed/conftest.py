"""A pipeline on two ranks, in processes as users have them, and one on a single rank."""

import gc

import pytest
from conftest import assert_all_free

from pipezoo import registry

SETTINGS = {"dtype": "float32", "page_size": 8, "kv_cache_memory": "4MiB", "max_length": 200}


@pytest.fixture(scope="package")
def both(of_each_plugin):
    """The pipelines on one rank and on two, of the same model."""
    _, folder = of_each_plugin
    alone = registry.load(folder, device="cpu", **SETTINGS)
    divided = registry.load(folder, devices=["cpu", "cpu"], **SETTINGS)
    yield alone, divided
    assert_all_free(divided)
    del divided
    gc.collect()
