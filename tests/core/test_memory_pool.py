"""Memory that serves again, and never while a tensor has it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipezoo_core.native import MemoryPool


def sizes_of(pool):
    return sorted(len(piece) for piece, _ in pool._pieces)


def test_memory_serves_again_when_nobody_has_it():
    pool = MemoryPool()
    first = pool.empty((10, 100), torch.float32)
    assert first.shape == (10, 100)
    assert first.data_ptr() % 64 == 0
    address, view = first.data_ptr(), first[3:4]
    del first
    second = pool.empty((10, 100), torch.float32)
    assert second.data_ptr() != address, "a view still has it"
    del view
    third = pool.empty((10, 50), torch.bfloat16)
    assert third.data_ptr() == address


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.int8])
def test_tensors_have_the_shape_that_was_asked_for(dtype):
    tensor = MemoryPool().empty((3, 5, 7), dtype)
    assert (tensor.shape, tensor.dtype) == ((3, 5, 7), dtype)


def test_the_smallest_that_is_large_enough_serves_and_the_largest_gives_way():
    pool = MemoryPool()
    addresses = {t.nbytes: t.data_ptr() for t in [pool.empty((size,), torch.uint8) for size in (100, 300, 200)]}
    assert pool.empty((150,), torch.uint8).data_ptr() == addresses[200]
    assert sizes_of(pool) == [100, 200, 300]
    assert pool.empty((400,), torch.uint8).nbytes == 400
    assert sizes_of(pool) == [100, 200, 400]


def test_exact_sizes():
    pool = MemoryPool(exact=True)
    address = pool.empty((300,), torch.uint8).data_ptr()
    small = pool.empty((100,), torch.uint8)
    again = pool.empty((300,), torch.uint8)
    assert small.data_ptr() != address == again.data_ptr()
    assert sizes_of(pool) == [100, 300]


def test_what_is_let_go():
    pool = MemoryPool()
    kept, left = pool.empty((300,), torch.uint8).fill_(7), pool.empty((200,), torch.uint8)
    del left
    pool.let_go()
    assert sizes_of(pool) == [300]
    del pool
    assert (kept == 7).all()


@given(st.lists(st.tuples(st.integers(1, 500), st.integers(0, 8)), max_size=60))
def test_tensors_that_live_together_are_apart(steps):
    """Makes tensors of any size and lets go of any of them."""
    pool = MemoryPool()
    alive = []
    for number, (size, victim) in enumerate(steps):
        alive.append((number, pool.empty((size,), torch.int32).fill_(number)))
        if victim < len(alive) - 1:
            alive.pop(victim)
        for value, tensor in alive:
            assert (tensor == value).all()
