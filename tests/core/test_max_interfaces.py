"""Every name and signature that MAX documents for its interfaces is here, too: max_interfaces.toml lists them."""

import inspect
import tomllib
from pathlib import Path

import pytest

from pipezoo_core import interfaces

TABLE = tomllib.loads(Path(__file__).with_name("max_interfaces.toml").read_text("utf-8"))
FUNCTIONS = TABLE.pop("functions")
MEMBERS = [(owner, name) for owner, of_class in TABLE.items() for name in of_class["members"]]
IN_TORCH = {"DType": "torch.dtype", "list[Device]": "list[torch.device]"}


def parameters_of(function):
    """The parameters as the table writes them, those that are bound left out."""
    found = [p.replace(annotation=inspect.Parameter.empty) for p in inspect.signature(function).parameters.values()]
    return [str(parameter).replace(" ", "") for parameter in found if parameter.name not in ("self", "cls")]


def kind_of(owner, name):
    found = inspect.getattr_static(owner, name, None)
    if isinstance(found, property | classmethod | staticmethod):
        return type(found).__name__
    return "method" if inspect.isfunction(found) else "attribute"


def describe(owner, name):
    """What the code says about a member, in the table's terms."""
    kind = kind_of(owner, name)
    found = inspect.getattr_static(owner, name, None)
    function = {"property": lambda: found.fget, "classmethod": lambda: found.__func__}.get(kind, lambda: found)()
    described = {"kind": kind}
    if kind == "attribute":
        annotations = owner.__annotations__
        described |= {"default": str(vars(owner).get(name)), "returns": annotations.get(name, "missing")}
    else:
        described |= {
            "abstract": getattr(found, "__isabstractmethod__", False),
            "async": inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function),
            "parameters": parameters_of(function),
            "returns": function.__annotations__["return"],
        }
    return described


def expected_of(entry):
    expected = {key: value for key, value in entry.items() if key != "pending"}
    if entry["kind"] != "attribute":
        expected = {"abstract": False, "async": False, "parameters": [], **expected}
    if "returns" in entry:
        expected["returns"] = IN_TORCH.get(entry["returns"], entry["returns"])
    return expected


@pytest.mark.parametrize(("owner", "name"), MEMBERS, ids=[".".join(member) for member in MEMBERS])
def test_member(owner, name):
    entry = TABLE[owner]["members"][name]
    expected = expected_of(entry)
    found = describe(getattr(interfaces, owner), name)
    holds = {key: found.get(key) for key in expected} == expected
    assert holds is not entry.get("pending", False), f"{owner}.{name}: {found}"


@pytest.mark.parametrize("name", TABLE)
def test_class(name):
    owner, entry = getattr(interfaces, name), TABLE[name]
    assert name in interfaces.__all__
    assert [base.__name__ for base in owner.__bases__] == entry["bases"]
    if "constructor" in entry:
        assert parameters_of(owner.__init__) == entry["constructor"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function(name):
    function, entry = getattr(interfaces, name), FUNCTIONS[name]
    assert name in interfaces.__all__
    assert parameters_of(function) == entry["parameters"]
    assert function.__annotations__["return"] == entry.get("returns", function.__annotations__["return"])
