"""Every tensor that a kernel is given is checked: a wrong one is a typed error, never other numbers.

The functions, their tensors, and the kernels are counted, so that a new one without an example fails.
"""

import importlib
import inspect

import pytest
import torch
from core.kernel_examples import ROWS, examples
from kernels_here import needs_kernels

from pipezoo_core.errors import TensorMismatchError
from pipezoo_core.layers import Heads, LatentHeads, Router, Routing
from pipezoo_core.layers.native_experts import NativeExperts
from pipezoo_core.layers.native_product import NativeProduct
from pipezoo_core.native import Activation, Form, NativeKernels, kernel_notes, variants

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32, torch.uint8)
pytestmark = [
    needs_kernels,
    pytest.mark.filterwarnings("ignore:.*out of the range:UserWarning"),
]


class Noted:
    """A module, and which of its functions were asked for."""

    def __init__(self, module):
        self.module, self.names = module, set()

    def __getattr__(self, name):
        self.names.add(name)
        return getattr(self.module, name)


def resized(x, dim, size):
    """The same numbers, over again where there are more."""
    return x.index_select(dim, torch.arange(size) % x.shape[dim])


def negated(x):
    """The same numbers, kept with the other sign, as torch does where it can spare a copy."""
    return torch._neg_view(-x)


def wrong_ones(given):
    """name -> a tensor that the function must refuse."""
    x, free = given.x, given.free
    wrong = {"elsewhere": x.to("meta"), "sparse": x.to_sparse(), "negated": negated(x)}
    if x.dtype in (torch.float32, torch.bfloat16):
        wrong["of mkldnn"] = x.contiguous().to_mkldnn()
    if given.dtypes is not None:
        wrong |= {str(dtype): x.to(dtype) for dtype in DTYPES if dtype is not x.dtype and dtype not in given.dtypes}
    if free is None:
        return wrong
    dims = [x.dim() - 1] if free == ROWS else [dim for dim in range(x.dim()) if dim not in free]
    for dim in dims:
        wrong |= {f"{size} of {dim}": resized(x, dim, size) for size in
                  (x.shape[dim] - 1, x.shape[dim] + 1, 2 * x.shape[dim] + 1)}  # fmt: skip
    if free == ROWS or x.dim() - 1 not in free:
        wrong["nothing in a row"] = x[..., :0]
    if free != ROWS:
        wrong |= {"one more dimension": x[None], "one dimension less": x[0]}
    return wrong | {"a column": x[..., None], "a number": x.flatten()[0]}


def laid_out(x):
    """name -> the same tensor, with other numbers between its own."""
    layouts = {
        "every other number": torch.stack((x, torch.zeros_like(x)), -1)[..., 0],
        "rows of a wider tensor": torch.cat((x, torch.zeros_like(x)), -1)[..., : x.shape[-1]],
    }
    if x.dim() > 1:
        layouts["turned"] = x.mT.contiguous().mT
        layouts["every other row"] = torch.stack((x, torch.zeros_like(x)), 1)[:, 0]
    return {name: y for name, y in layouts.items() if not y.is_contiguous()}


def after(example, **others):
    """Everything that there is after a call: what it returned, and what its tensors have become."""
    tensors = {name: given.x.clone() for name, given in example.given.items()} | others
    returned = example.call(**tensors)
    return [] if returned is None else [*(returned if isinstance(returned, tuple) else (returned,)), *tensors.values()]


def same(found, right):
    return all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(found, right, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wrong_tensors_are_refused(dtype):
    _, calls = examples(dtype)
    for example in calls:
        right = after(example)
        for name, given in example.given.items():
            for mistake, x in wrong_ones(given).items():
                with pytest.raises(TensorMismatchError):
                    pytest.fail(f"{example.function}, {name}, {mistake}: {after(example, **{name: x})[0].shape}")
            for layout, x in laid_out(given.x).items():
                told = f"{example.function}, {name}, {layout}"
                if given.contiguous:
                    with pytest.raises(TensorMismatchError, match="not contiguous"):
                        pytest.fail(f"{told}: {after(example, **{name: x})}")
                else:
                    assert same(after(example, **{name: x}), right), told


def test_each_function_has_an_example_with_all_its_tensors():
    _, calls = examples(torch.float32)
    counted = {}
    for name, function in inspect.getmembers(NativeKernels, inspect.isfunction):
        annotations = [str(p.annotation) for p in inspect.signature(function).parameters.values()]
        count = sum(annotation.count("Tensor") for annotation in annotations)
        if count and not name.startswith("_"):
            counted[name] = count
    assert {example.function for example in calls} == counted.keys()
    for example in calls:
        assert len(example.given) == counted[example.function], example.function


def test_each_kernel_is_in_an_example(monkeypatch):
    module = importlib.import_module(variants.MODULE)
    names = {name for name in dir(module) if callable(getattr(module, name)) and not name.startswith("__")}
    called = {"replay"}  # of what was checked when it was recorded
    for dtype in (torch.float32, torch.bfloat16):
        suffix = variants.DTYPES[dtype]
        kernels, calls = examples(dtype)
        noted = Noted(module)
        monkeypatch.setattr(kernels, "_native", noted)
        for example in calls:
            after(example)
        called |= noted.names & names
        for name, function in NOTED.items():
            for kernel, _ in notes_of(kernels, function, name, tensors_of(name, dtype))[0]:
                called.add(f"{kernel}_{suffix}")
    assert called == names


aten = torch.ops.aten
NOTED = {str(function): function for function in kernel_notes._KERNELS}
OTHERS = {  # what an operation is given besides a tensor of rows; tensors are said by their shapes
    "add": [(5, 34)], "add_": [(5, 34)], "sub": [(5, 34)], "mul": [(5, 34)], "mul_": [(5, 34)],
    "div": [2.0], "div_": [2.0], "pow": [2], "clamp": [-0.5, 0.5], "clamp_": [-0.5, 0.5],
    "layer_norm": [[34], (34,), (34,)], "native_layer_norm": [[34], (34,), (34,), 1e-5],
    "embedding": [torch.tensor([3, 0, 4])],
}  # fmt: skip


def tensors_of(name, dtype):
    generator = torch.Generator().manual_seed(5)
    shapes = [(5, 34), *OTHERS.get(name.split(".")[1], [])]
    return [torch.randn(x, generator=generator).to(dtype) if isinstance(x, tuple) else x for x in shapes]


def notes_of(kernels, function, name, args):
    """What is noted of an operation, and the tensors it has made; torch raises for some mistakes itself."""
    notes = type("Notes", (), {"dtype": kernels.dtype, "calls": []})()
    notes.add = lambda kernel, arguments: notes.calls.append((kernel, arguments))
    given = list(args)
    if "_." in name:
        given[0] = given[0].clone() if given[0].is_contiguous() else given[0]
    result = function(*given)
    is_noted = kernel_notes.note_kernel(notes, function, result, given, {})
    return (notes.calls if is_noted else []), result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_noted_of_an_operation_computes_the_same(dtype):
    """Whatever tensors torch takes: a kernel that would compute something else is not noted."""
    kernels = NativeKernels(CPU, dtype)
    module = importlib.import_module(variants.MODULE)
    count = 0
    for name, function in NOTED.items():
        args = tensors_of(name, dtype)
        assert notes_of(kernels, function, name, args)[0], name
        for i, x in enumerate(args):
            if not isinstance(x, torch.Tensor):
                continue
            others = {str(other): x.to(other) for other in DTYPES if other is not x.dtype}
            others |= {"one row": x[:1], "a number": x.flatten()[0], "elsewhere": x.to("meta"), **laid_out(x)}
            others["negated"] = negated(x)
            for mistake, other in others.items():
                try:
                    calls, result = notes_of(kernels, function, name, [*args[:i], other, *args[i + 1 :]])
                except (RuntimeError, NotImplementedError, IndexError):  # torch takes none of it either
                    continue
                for kernel, arguments in calls:
                    y = result[0] if isinstance(result, tuple) else result
                    right = y.clone()
                    if "_." not in name:  # else the kernel would compute with its own result
                        y.fill_(torch.nan)
                        getattr(module, f"{kernel}_{variants.DTYPES[dtype]}")(*arguments)
                    torch.testing.assert_close(y, right, msg=f"{name}, {i}, {mistake}")
                    count += 1
    assert count > len(NOTED)


def test_what_a_router_or_experts_are_described_by():
    """The kernels are told where their weights are, and see no more of them."""
    k = NativeKernels(CPU, torch.float32)
    for name in ("weight", "bias", "e_score_correction_bias"):
        router = Router(64, Routing(num_experts=4, top_k=2), bias=True, correction=True)
        x = getattr(router, name).data
        router.compute_with(k)
        for wrong in (x.double(), x[:-1], x[..., :-1], x.repeat_interleave(2, -1)[..., ::2], x[None]):
            getattr(router, name).data = wrong
            with pytest.raises(TensorMismatchError):
                router.compute_with(k)

    def product(rows, columns, bits=None, form=Form.plain, activation=Activation.silu, *, bias=False):
        return NativeProduct(k, torch.ones(rows, columns), torch.ones(rows) if bias else None, bits, form, activation)

    gate_ups, downs = [product(64, 64, form=Form.gated)] * 2, [product(64, 32)] * 2
    NativeExperts(gate_ups, downs, activation=Activation.silu, first=0, top_k=1)
    for wrong in (product(96, 32), product(64, 64), product(64, 32, 8), product(64, 32, bias=True)):
        with pytest.raises(TensorMismatchError):
            NativeExperts(gate_ups, [downs[0], wrong], activation=Activation.silu, first=0, top_k=1)
    other_gate = product(64, 64, form=Form.gated, activation=Activation.gelu)
    for wrong in (product(128, 64, form=Form.gated), product(64, 64, 4, Form.gated), other_gate):
        with pytest.raises(TensorMismatchError):
            NativeExperts([gate_ups[0], wrong], downs, activation=Activation.silu, first=0, top_k=1)


def heads_of(kernels):
    heads = LatentHeads(Heads(3, 1, 64), 64, 32, 32)
    heads.compute_with(kernels)


@pytest.mark.parametrize("size", [36, 38, 74])
def test_a_layer_has_a_bias_of_its_size(size):
    with pytest.raises(TensorMismatchError, match="a bias"):
        NativeProduct(NativeKernels(CPU, torch.float32), torch.ones(37, 64), torch.ones(size))


@pytest.mark.parametrize("of", [lambda k: NativeProduct(k, torch.ones(37, 64), None), heads_of])
def test_a_layer_has_a_packed_weight_of_its_size(of, monkeypatch):
    """Whoever has packed it: here it is cut short."""
    k = NativeKernels(CPU, torch.float32)
    pack = k.pack
    monkeypatch.setattr(k, "pack", lambda *given: pack(*given)[:-1])
    with pytest.raises(TensorMismatchError, match="a packed weight"):
        of(k)


def test_a_bias_that_is_not_contiguous_is_copied_by_its_layer():
    k = NativeKernels(CPU, torch.float32)
    weight, bias, x = torch.randn(37, 64), torch.randn(74), torch.randn(3, 64)
    found = NativeProduct(k, weight, bias[::2])(x)
    torch.testing.assert_close(found, torch.nn.functional.linear(x, weight, bias[::2]), atol=1e-4, rtol=1e-4)
