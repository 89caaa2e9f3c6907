"""Parts, joints and other orders of a checkpoint's tensors, against the same done by torch to the whole."""

import pytest
import torch
from safetensors.torch import save_file

from pipezoo_core.errors import CheckpointMismatchError
from pipezoo_core.weights import LazyTensor, concatenated, open_safetensors


@pytest.fixture
def on_disk(tmp_path):
    """Saves a tensor, and returns it as a checkpoint's."""

    def save(tensor):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
        save_file({"x": tensor.contiguous()}, path)
        return open_safetensors([path])["x"]

    return save


def noting(tensor, reads):
    """A tensor that notes which rows are read."""

    def read(rows):
        reads.append((rows.start, rows.stop))
        return tensor[rows]

    return LazyTensor(tuple(tensor.shape), tensor.dtype, read)


def check(lazy, expected):
    assert lazy.shape == tuple(expected.shape)
    assert torch.equal(lazy.load(), expected)
    for first in range(len(expected)):
        assert torch.equal(lazy.read(slice(first, len(expected))), expected[first:])
        assert torch.equal(lazy.read(slice(0, first + 1)), expected[: first + 1])


def test_transposed(on_disk):
    x = torch.randn(5, 7)
    check(on_disk(x).transposed(), x.T)
    check(on_disk(x).transposed().rows(slice(1, 3), slice(4, 7)), torch.cat([x.T[1:3], x.T[4:7]]))
    check(on_disk(x).transposed().columns(slice(1, 3)), x.T[:, 1:3])


@pytest.mark.parametrize("first", [0, 1])
def test_every_other_row(first, on_disk):
    x = torch.randn(6, 5)
    check(on_disk(x).every_other(first), x[first::2])
    check(on_disk(x).every_other(first).columns(slice(1, 3)), x[first::2, 1:3])


def test_queries_keys_and_values_that_alternate_head_by_head(on_disk):
    fused = torch.randn(3 * 3 * 2, 5)  # three heads of two rows each of q, k and v
    for part in range(3):
        ranges = [slice(6 * head + 2 * part, 6 * head + 2 * part + 2) for head in range(3)]
        check(on_disk(fused).rows(*ranges), fused.view(3, 3, 2, 5)[:, part].reshape(6, 5))


def test_rows_are_read_where_they_are_asked_for():
    reads = []
    x = torch.randn(10, 3)
    part = noting(x, reads).rows(slice(6, 9), slice(1, 3))
    assert torch.equal(part.read(slice(2, 4)), torch.stack([x[8], x[1]]))
    assert reads == [(8, 9), (1, 2)]


def test_experts_of_a_stacked_tensor(on_disk, monkeypatch):
    from pipezoo_core.weights import safetensors

    stacked = torch.randn(4, 6, 5)
    experts = on_disk(stacked).unstacked()
    assert len(experts) == 4
    for expert, expected in zip(experts, stacked, strict=True):
        check(expert, expected)
        check(expert.rows(slice(3, 6)).transposed(), expected[3:].T)
    sizes = []
    read_bytes = safetensors.read_bytes
    monkeypatch.setattr(safetensors, "read_bytes", lambda *place: sizes.append(place[2]) or read_bytes(*place))
    assert torch.equal(experts[2].read(slice(1, 3)), stacked[2, 1:3])
    assert sizes == [2 * 5 * 4]


def test_experts_of_a_changed_tensor(on_disk):
    stacked = torch.randn(3, 4, 6)
    changed = on_disk(stacked).then(torch.neg, num_rows=1)
    for expert, expected in zip(changed.unstacked(), stacked, strict=True):
        check(expert, -expected)
    for bias, expected in zip(on_disk(stacked[0]).unstacked(), stacked[0], strict=True):
        check(bias, expected)


def test_concatenated():
    reads = []
    parts = [torch.randn(size, 3) for size in (2, 4, 1)]
    check(concatenated([noting(part, reads) for part in parts]), torch.cat(parts))
    reads.clear()
    concatenated([noting(part, reads) for part in parts]).read(slice(3, 5))
    assert reads == [(1, 3)]
    with pytest.raises(CheckpointMismatchError, match=r"\[3\], \[4\]"):
        concatenated([noting(parts[0], reads), noting(torch.randn(2, 4), reads)])
