"""Every tensor the product makes names its dtype and its device: torch's defaults are the caller's to change."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path for folder in ("core", "registry", "plugins", "kernels") for path in (ROOT / folder).rglob("src/**/*.py")
)
MAKERS = {
    "arange", "as_tensor", "asarray", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "normal", "ones",
    "rand", "randint", "randn", "randperm", "range", "scalar_tensor", "tensor", "tril_indices", "triu_indices", "zeros",
}  # fmt: skip
NAMELESS = {"Tensor", "FloatTensor", "HalfTensor", "LongTensor", "DoubleTensor"}  # classes that take defaults


def unnamed(source):
    """Yields lines with a tensor whose dtype or device is torch's default. Parameters are the module's caller's."""
    tree = ast.parse(source)
    of_parameters = {
        id(argument)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "Parameter"
        for argument in node.args
    }
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and id(node) not in of_parameters):
            continue
        if not (isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"):
            continue
        names = {keyword.arg for keyword in node.keywords}
        if node.func.attr in NAMELESS or (node.func.attr in MAKERS and not {"dtype", "device"} <= names):
            yield node.lineno


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("torch.zeros(3)", [1]),
        ("torch.zeros(3, dtype=x)", [1]),
        ("\ntorch.arange(3, device=x)", [2]),
        ("torch.full((2,), 1.0, dtype=x, device=y)", []),
        ("nn.Parameter(torch.empty(2))", []),
        ("torch.Tensor([1])", [1]),
        ("x.new_zeros(3)", []),
    ],
)
def test_what_is_found(source, lines):
    assert list(unnamed(source)) == lines


def test_all_are_named():
    assert len(SOURCES) > 100
    found = [f"{path.relative_to(ROOT)}:{line}" for path in SOURCES for line in unnamed(path.read_text("utf-8"))]
    assert not found
