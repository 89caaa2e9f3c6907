"""Operations of torch that have no kernel are replayed, and give bit for bit what they give without."""

import ctypes
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_here import needs_kernels

from pipezoo_core.decoder.recorded_module import RecordedModule
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.kv_cache import KVCacheInputs, RaggedBatch
from pipezoo_core.native import NativeKernels
from pipezoo_core.native.activation import Activation
from pipezoo_core.native.foreign_call import ForeignCall, Source, TensorPlace
from pipezoo_core.native.made_memory import MadeMemory
from pipezoo_core.native.program import Notes, Place, lifetimes

KERNELS = NativeKernels(torch.device("cpu"), torch.float32)
pytestmark = needs_kernels
VOCABULARY, SIZE, MAX_ROWS = 50, 32, 48


@dataclass
class Given:
    """What a module computes with: an embedding, a row, and the tensors of the step."""

    table: torch.Tensor
    row: torch.Tensor
    tokens: torch.Tensor
    positions: torch.Tensor
    context_lengths: torch.Tensor


class Parameters:
    """A module that embeds the tokens, computes something with them, and ends with a kernel."""

    def __init__(self, compute):
        self.compute = compute
        generator = torch.Generator().manual_seed(0)
        self.table = torch.randn(VOCABULARY, SIZE, generator=generator)
        self.row = torch.rand(SIZE, generator=generator) + 0.5

    def __call__(self, tokens, kv):
        given = Given(self.table, self.row, tokens, kv.positions, kv.context_lengths)
        x = KERNELS.rms_norm(torch.nn.functional.embedding(tokens, self.table), self.row, 1e-6)
        return KERNELS.activate(self.compute(x, given), Activation.silu)


def step_of(num_rows, seed):
    """A step whose inputs are new tensors, with other numbers for each seed."""
    generator = torch.Generator().manual_seed(seed)
    tokens, positions = torch.randint(0, VOCABULARY, (2, num_rows), generator=generator)
    lengths = positions + 1
    integers = torch.zeros(1, dtype=torch.int64)
    batch = RaggedBatch([num_rows], [0], [num_rows], [])
    return tokens, KVCacheInputs(positions, lengths, integers, integers, batch, (), (), ())


def replayed_and_eager(compute, rows=(1, 2, 3, 17, 48, 1, 17)):
    """Runs steps of so many rows, each with other numbers; returns the recorded module, and two results of each."""
    module = Parameters(compute)
    recorded = RecordedModule(module, KERNELS, MAX_ROWS)
    results = []
    with torch.inference_mode():
        for seed, num_rows in enumerate(rows):
            results.append((recorded(*step_of(num_rows, seed)).clone(), module(*step_of(num_rows, seed)).clone()))
    return recorded, results


def assert_same(results):
    for found, expected in results:
        assert torch.equal(found, expected)
        assert expected.isfinite().all()


def in_place(x, given):
    y = x * given.row.cos()
    y.exp_()
    y[:, 3:9].neg_()
    y[:, ::2] = 0.25
    y.masked_fill_(y > 1.5, 1.5)
    return y


def of_columns(x, given):
    wide = torch.cat([x, x.sin(), x.neg()], dim=-1)
    first, second, third = wide.chunk(3, dim=-1)
    return torch.where(first > 0, second, third) + wide[:, 8 : 8 + SIZE].cos()


def over_heads(x, given):
    heads = x.view(len(x), 4, -1)
    scores = torch.matmul(heads, heads.transpose(1, 2)).softmax(-1)
    return (scores @ heads).sum(1, keepdim=True).expand_as(heads).reshape(x.shape)


def over_a_half(x, given):
    low, high = x.to(torch.bfloat16).float().split(SIZE // 2, dim=-1)
    return torch.stack([low.abs().sqrt(), high.double().exp().float()], dim=1).flatten(1)


def with_two_results(x, given):
    values, places = x.topk(3, dim=-1)
    return x.clone().scatter_(-1, places, values.softmax(-1)) - torch.var_mean(x, -1, keepdim=True)[1]


def alive_across_kernels(x, given):
    """What is computed first is read last: in between, kernels and operations take memory and let go of it."""
    kept = x.cos()
    for _ in range(3):
        x = KERNELS.activate(KERNELS.rms_norm(x, given.row, 1e-6).sin(), Activation.gelu) + x.cos()
    return KERNELS.rms_norm(x, given.row, 1e-6) * kept.sin() - kept


def kept_over_kernels(x, given):
    """Six operations, and one whose result the kernels after it must not overwrite."""
    for _ in range(6):
        x = x.cos()
    kept = x.sin()
    return kept.exp() * KERNELS.rms_norm(KERNELS.rms_norm(x, given.row, 1e-6), given.row, 1e-6)


def made_anew(x, given):
    low = torch.tensor(-0.5)
    table = torch.arange(8, dtype=torch.float32).cos()
    return torch.where(x < low, low, x) + torch.tensor([0.25, 4.0])[0] * table.repeat(SIZE // 8)


def alibi(x, given):
    slopes = torch.arange(1, 5, dtype=torch.float32).neg().exp2()
    return x + (slopes * given.positions[:, None]).repeat(1, SIZE // 4) / given.context_lengths[:, None]


def rows_and_columns(x, given):
    """Parts of a tensor that begin further on where there are more rows."""
    both = torch.stack([x.cos(), x.sin()])
    return KERNELS.rms_norm(both[1], given.row, 1e-6) + both[1] * both.sum(0)


def complex_rotation(x, given):
    angles = torch.polar(torch.ones(SIZE // 2), given.row[: SIZE // 2])
    turned = torch.view_as_complex(x.view(len(x), -1, 2)) * angles
    return torch.view_as_real(turned).flatten(1)


COMPUTED = {
    "cos": lambda x, given: x.cos(),
    "rows times rows": lambda x, given: (x @ x.t()).cos() @ x * 0.1,
    "columns that lie apart": lambda x, given: (x[:, ::2] * 2).repeat(1, 2),
    "transposed times two": lambda x, given: (x.t() * 2).t() + x,
    "the last": lambda x, given: x + given.row.cos(),
    "softmax": lambda x, given: x.softmax(-1),
    "cumsum": lambda x, given: x.cumsum(-1),
    "over rows": lambda x, given: x.cumsum(0).cos() - x.mean(0),
    "product": lambda x, given: x @ given.table[:SIZE].T,
    "einsum": lambda x, given: torch.einsum("th,hk->tk", x, given.table[:SIZE].cos()),
    "learned positions": lambda x, given: x.cos() + torch.nn.functional.embedding(given.positions, given.table),
    "moved positions": lambda x, given: x + given.table[(given.positions + 2) % VOCABULARY],
    "selected": lambda x, given: x + given.table.index_select(0, given.context_lengths % 7),
    "mask": lambda x, given: x.masked_fill((given.tokens % 2 == 0)[:, None], 0.5),
    "arange": lambda x, given: x * torch.arange(len(x), device=x.device)[:, None].float(),
    "ones": lambda x, given: x + torch.ones(len(x), SIZE) * torch.full((SIZE,), 0.5),
    "transposed": lambda x, given: x.t().cos().t().sin(),
    "transposed copy": lambda x, given: x.t().contiguous().cumsum(0).t().contiguous(),
    "number of rows": lambda x, given: x + torch.full((SIZE,), len(x)).float(),
    "fixed": lambda x, given: x + torch.outer(given.row, given.row).sum(0),
    "a slice of a table": lambda x, given: x.cos() + given.table[: len(x)],
    "in place": in_place,
    "columns": of_columns,
    "heads": over_heads,
    "halves": over_a_half,
    "two results": with_two_results,
    "alive": alive_across_kernels,
    "kept": kept_over_kernels,
    "anew": made_anew,
    "of numpy": lambda x, given: x.cos() * torch.from_numpy(np.linspace(0, 1, SIZE, dtype=np.float32)).sin(),
    "a number": lambda x, given: x * x.cos().mean() + x,
    "as another": lambda x, given: x.cos().double().type_as(x).view_as(x),
    "alibi": alibi,
    "rows and columns": rows_and_columns,
    "complex": complex_rotation,
}


@pytest.mark.parametrize("name", COMPUTED)
def test_an_operation_without_a_kernel_is_replayed(name):
    recorded, results = replayed_and_eager(COMPUTED[name])
    assert_same(results)
    assert recorded.obstacles == {}
    assert len(recorded.operations) > 0


REFUSED = {
    "aten.item.default": lambda x, given: x * given.positions.sum().item(),
    "aten.is_nonzero.default": lambda x, given: x if given.positions.sum() > 20 else x.cos(),
    "aten.equal.default": lambda x, given: x if torch.equal(given.tokens, given.positions) else x.cos(),
    "aten.nonzero.default": lambda x, given: x + given.tokens.nonzero().sum(),
    "aten.index.Tensor": lambda x, given: x + x[x > 0].sum(),
    "aten.bernoulli.default": lambda x, given: x * (torch.bernoulli(x.sigmoid()) * 0 + 1),
    "aten.rand_like.default": lambda x, given: x + torch.rand_like(x) * 0,
    "aten.tensor_split.tensor_indices_or_sections": lambda x, given: (
        x + given.table.tensor_split(given.positions[:1])[1].sum() / 1000
    ),
    "aten.meshgrid.indexing": lambda x, given: x + torch.meshgrid(given.row, given.row, indexing="ij")[0].sum() / 1000,
    "aten.cos.out": lambda x, given: torch.cos(x, out=torch.empty_like(x)),
    "aten.cos.default of a tensor that is empty, or not plain memory of the CPU": lambda x, given: (
        x + x[:0].cos().sum()
    ),
    "in proportion": lambda x, given: x.cos() + torch.arange(len(x) + 1).sum(),
    "depends on the number of rows": lambda x, given: x.cos() + torch.tensor([float(len(x))]),
    "aten.index.Tensor raises": lambda x, given: x + given.table[given.context_lengths - VOCABULARY - 1],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_may_not_be_run_again_is_refused(name):
    recorded, results = replayed_and_eager(REFUSED[name])
    assert_same(results)
    assert recorded._program is None
    [obstacle] = set(recorded.obstacles.values())
    assert name.removesuffix(" raises") in obstacle


def test_one_clock_counts_kernels_and_operations():
    """A kernel, two operations, a kernel: each tensor lives from the one that writes it to the one that reads it."""

    def place(number):
        return TensorPlace(Source.made, number, 0, (2, 16), (16, 1), torch.float32)

    cos = torch.ops.aten.cos.default
    foreign = [ForeignCall(1, cos, (place(i),), (), (place(i + 1),)) for i in range(2)]
    places = [Place(0, 1, 0, 0), Place(1, 1, 2, 0), Place(1, 2, 3, 0)]
    notes = Notes(2, [[1, 0], [1, 0, 0]], places, [], [128] * 4, (3, 0), ((16,), torch.float32), foreign, [])
    assert lifetimes(notes) == {0: (0, 1), 1: (1, 2), 2: (2, 3), 3: (3, 4)}


def test_memory_that_is_gone_is_not_taken_for_what_lies_there_now():
    made = MadeMemory()
    kept, gone = torch.empty(8), torch.empty(8)
    made.add(kept.untyped_storage())
    made.add(gone.untyped_storage())
    assert made.find_in(kept[3:].untyped_storage()) == (0, 0)
    assert made.find(kept[3:].data_ptr()) == (0, 12)
    address = gone.data_ptr()
    memory = (ctypes.c_float * 8).from_address(address)  # which stays readable: malloc keeps small pieces
    del gone
    assert made.find(address) == (1, 0)
    assert made.find_in(torch.frombuffer(memory, dtype=torch.float32).untyped_storage()) is None


def test_what_a_kernel_cannot_read_leaves_no_kernel_behind():
    """Positions of 32 bits are looked up by torch, and by no kernel before it."""

    def compute(x, given):
        return x.cos() + torch.nn.functional.embedding(given.positions.int(), given.table)

    recorded, results = replayed_and_eager(compute)
    assert_same(results)
    assert "aten.embedding.default" in recorded.operations
    assert recorded._program.num_calls == len(["embedding", "rms_norm", "add", "silu"])


def test_a_recording_writes_nothing_outside_the_step():
    counter = torch.zeros(1)

    def compute(x, given):
        counter.add_(1)
        return x.cos() + counter

    module = Parameters(compute)
    recorded = RecordedModule(module, KERNELS, MAX_ROWS)
    with torch.inference_mode():
        for count in range(1, 4):
            recorded(*step_of(3, count))
            assert counter.item() == count
    assert set(recorded.obstacles.values()) == {"aten.add_.Tensor, which writes to memory from outside the step"}


def test_a_shape_that_depends_on_numbers_is_noticed_while_it_is_replayed():
    """As long as all positions are small, `where` has a result for each; the step where one is not is run again."""
    recorded, results = replayed_and_eager(lambda x, given: x.cos() + torch.where(given.positions < 40)[0].sum() / 100)
    assert_same(results)
    assert recorded._program is None
    assert set(recorded.obstacles.values()) == {"aten.where.default, whose result's shape depends on numbers"}


def test_a_step_that_may_have_written_states_is_not_run_again():
    """Tokens would count twice in those that are read and written in the same slot."""
    ran = []
    module = Parameters(lambda x, given: x.cos() + torch.where(given.positions < 40)[0].sum() / 100)
    recorded = RecordedModule(lambda *step: ran.append(step) or module(*step), KERNELS, MAX_ROWS)

    def run(position):
        tokens, kv = step_of(3, seed=1)
        ran.clear()
        positions = torch.full((3,), position, dtype=torch.int64)
        return recorded(tokens, replace(kv, positions=positions, states=((), (torch.zeros(1, 2),))))

    with torch.inference_mode():
        run(1)
        run(2)
        assert not ran  # it is replayed
        with pytest.raises(UnsupportedModelError, match=r"changed their states already"):
            run(41)
        assert not ran
        assert run(41).shape == (3, SIZE)  # the failure is one step's
        assert len(ran) == 1


OPERATIONS = {
    "kernel": lambda x, other, given: KERNELS.rms_norm(x, given.row, 1e-6),
    "sum": lambda x, other, given: x + other,
    "product": lambda x, other, given: x * other,
    "cos": lambda x, other, given: x.cos(),
    "cat": lambda x, other, given: torch.cat([other, x], dim=-1)[:, SIZE // 2 : -SIZE // 2],
    "stack": lambda x, other, given: torch.stack([x, other], dim=1)[:, 1] - x,
    "stack of rows": lambda x, other, given: torch.stack([x, other]).unbind(0)[1],
    "where": lambda x, other, given: torch.where(x > other, x, other),
    "softmax": lambda x, other, given: x.softmax(-1),
    "halves": lambda x, other, given: torch.cat(x.chunk(2, dim=-1)[::-1], dim=-1),
    "heads": lambda x, other, given: (x.view(len(x), 4, -1) * other.view(len(x), 4, -1).sum(1, keepdim=True)).flatten(
        1
    ),
    "bfloat16": lambda x, other, given: x.bfloat16().float(),
    "cumsum": lambda x, other, given: (x * 0.1).cumsum(-1),
    "positions": lambda x, other, given: x + given.table[given.positions],
    "lengths": lambda x, other, given: x / given.context_lengths[:, None],
    "mask": lambda x, other, given: x.masked_fill((given.tokens > 20)[:, None], 0.5),
    "in place": lambda x, other, given: x.clone().sin_().add_(other),
    "a part in place": lambda x, other, given: _part_in_place(x, other),
    "transposed": lambda x, other, given: x.t().sin().t(),
    "kernel of a part": lambda x, other, given: KERNELS.activate(torch.cat([x, other], -1)[:, :SIZE], Activation.gelu),
    "mean": lambda x, other, given: x - other.mean(-1, keepdim=True).expand(len(x), SIZE),
}


def _part_in_place(x, other):
    y = x.clone()
    y[:, 4:12] = other[:, :8]
    return y


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([*OPERATIONS]), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12)
)
def test_whatever_they_are_composed_to(lines):
    """Each line computes of two of the tensors that there are a further one; what nobody reads lives on, or not."""

    def compute(x, given):
        tensors = [x]
        for name, first, second in lines:
            made = OPERATIONS[name](tensors[first % len(tensors)], tensors[second % len(tensors)], given)
            tensors.append(made.clamp(-10, 10))
        return sum(tensors[-2:]).contiguous()

    recorded, results = replayed_and_eager(compute, (1, 2, 5, 48, 5, 1))
    assert_same(results)
    assert recorded.obstacles == {}


def test_steps_of_any_size_follow_one_another():
    recorded, results = replayed_and_eager(alive_across_kernels, tuple(range(1, MAX_ROWS + 1)) * 2)
    assert_same(results)
    assert recorded.obstacles == {}
