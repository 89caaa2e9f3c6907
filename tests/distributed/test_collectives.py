"""Sums and gathers of several ranks against plain ones, through shared memory and through torch.distributed."""

import errno
import os
import time
from datetime import timedelta
from itertools import product

import pytest
import torch
from distributed.ranks import CPU
from torch._C._distributed_c10d import FileStore

from pipezoo_core.distributed import DistributedGroup, Message, collectives, meeting
from pipezoo_core.distributed.signals import SIGNAL_BUFFER_BYTES, Signals, can_signal
from pipezoo_core.errors import InvalidSettingError, RankLostError
from pipezoo_core.testing.ranks import join, joined

pytestmark = [pytest.mark.slow, pytest.mark.alone]

SHAPES = [(1, 1), (3, 7), (64, 96), (1,), (700, 513)]  # the last one is larger than a message may be
DTYPES = [torch.float32, torch.bfloat16, torch.float64]
SIZES = [[5, 3, 4], [2, 9, 1]]
WAYS = [pytest.param(True, marks=pytest.mark.skipif(not can_signal(), reason="no shared memory here")), False]


def part_of(rank, shape, dtype):
    generator = torch.Generator().manual_seed(100 * rank + len(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def run_all(group):
    """Everything that the ranks do together, in the same order on each."""
    sums = [group.all_reduce(part_of(group.rank, shape, dtype).clone()) for shape, dtype in product(SHAPES, DTYPES)]
    gathers = [
        group.gather(part_of(group.rank, (rows, sizes[group.rank]), torch.float32), sizes[: group.size]).clone()
        for rows in (1, 4, 30_000)
        for sizes in SIZES
    ]
    return sums, gathers


@pytest.mark.parametrize("through_memory", WAYS)
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_sums_and_gathers(num_ranks, through_memory, tmp_path, monkeypatch):
    monkeypatch.setattr(collectives, "can_signal", lambda: through_memory)
    others = {}
    with joined(tmp_path, num_ranks, lambda group: others.update({group.rank: run_all(group)})) as group:
        assert len(group.signal_buffers) == num_ranks * through_memory
        sums, gathers = run_all(group)
    for found, (shape, dtype) in zip(sums, product(SHAPES, DTYPES), strict=True):
        parts = [part_of(rank, shape, dtype).double() for rank in range(num_ranks)]
        tolerance = {torch.float32: 1e-6, torch.bfloat16: 5e-2, torch.float64: 1e-12}[dtype]
        assert found.dtype is dtype
        assert torch.allclose(found.double(), sum(parts), atol=tolerance)
    expected = [
        torch.cat([part_of(rank, (rows, size), torch.float32) for rank, size in enumerate(sizes[:num_ranks])], dim=-1)
        for rows in (1, 4, 30_000)
        for sizes in SIZES
    ]
    assert all(torch.equal(found, part) for found, part in zip(gathers, expected, strict=True))
    for sums_there, _ in others.values():
        assert all(torch.equal(here, there) for here, there in zip(sums, sums_there, strict=True))


@pytest.mark.skipif(not can_signal(), reason="no shared memory here")
def test_without_shared_memory_left(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with joined(tmp_path, 2, run_all) as group:
        assert not group.signal_buffers
        run_all(group)


def test_a_rank_waits_for_a_step_longer_than_for_the_others_to_come(tmp_path, monkeypatch):
    monkeypatch.setattr(meeting, "TO_MEET", timedelta(seconds=3))
    received = []
    with joined(tmp_path, 2, lambda group: received.append(group.receive())) as group:
        time.sleep(3.5)
        group.send(Message.step, [[7]])
    assert received == [(Message.step, [[7]])]


def test_no_way_to_the_others(tmp_path):
    with pytest.raises(InvalidSettingError, match=r"cannot be reached .*nowhere.*GLOO_SOCKET_IFNAME"):
        DistributedGroup(
            0, 2, FileStore(str(tmp_path / "store"), 2), None, CPU, timeout=60.0, network={"interface": "nowhere"}
        )


def test_a_rank_that_never_comes(tmp_path, monkeypatch):
    (tmp_path / "counters").write_bytes(bytes(16))
    monkeypatch.setattr(meeting, "TO_MEET", timedelta(seconds=1))
    with pytest.raises(RankLostError, match="did not all meet"):
        join(tmp_path, 0, 2)


@pytest.mark.skipif(not can_signal(), reason="no shared memory here")
def test_many_messages_of_changing_sizes(tmp_path):
    """The halves of the buffers are written again as soon as nobody reads them any more, and not before."""

    def run(group):
        generator = torch.Generator().manual_seed(0)
        lengths = torch.randint(1, 3000, (400,), generator=generator).tolist()
        for i, length in enumerate(lengths):
            found = group.all_reduce(torch.full((length,), float(i + group.rank)))
            assert torch.equal(found, torch.full((length,), float(2 * i + 1)))

    with joined(tmp_path, 2, run) as group:
        assert [buffer.nbytes for buffer in group.signal_buffers] == [SIGNAL_BUFFER_BYTES] * 2
        assert 2 * Signals.max_bytes < SIGNAL_BUFFER_BYTES
        run(group)
        assert any(buffer.any() for buffer in group.signal_buffers)


@pytest.mark.parametrize(
    "lists", [[[1, 2, 3], [], [-1, 2**40]], [list(range(5000)), [7]], [[0] * 1021], [[0] * 1022], [[]] * 3000]
)
def test_lists_arrive_as_they_are(lists, tmp_path):
    received = []
    with joined(tmp_path, 2, lambda group: received.append(group.receive())) as group:
        group.send(Message.step, lists)
    assert received == [(Message.step, lists)]
