"""Errors between processes: all of pipezoo's arrive as they are, and nothing that is sent is ever run."""

import ast
import json
from pathlib import Path

import pytest

import pipezoo
import pipezoo_core
from pipezoo_core import errors
from pipezoo_core.distributed import decode_error, encode_error
from pipezoo_core.errors import CheckpointMismatchError, InvalidSettingError, PipezooError

RUNS_WHAT_IT_READS = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "multiprocessing"}


def sent(error):
    return decode_error(json.loads(json.dumps(encode_error(error))))


def make(kind):
    if kind is CheckpointMismatchError:
        return kind(missing=["b", "a"], wrong_shape=["c: [1] -> [2]"])
    return kind("what", found=["x", "y"], allowed=3, cure="Do this.")


@pytest.mark.parametrize("name", [name for name in errors.__all__ if isinstance(getattr(errors, name), type)])
def test_every_error_of_ours(name):
    error = make(getattr(errors, name))
    error.add_note("a note")
    found = sent(error)
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert vars(found) == vars(error)


class OwnError(InvalidSettingError):
    """One of a plugin's, whose constructor takes something else."""

    def __init__(self, number):
        super().__init__("the number is wrong", found=Path("here"), allowed={"a": object()})
        self.number = number


class Unspeakable(Exception):
    def __str__(self):
        raise ValueError


def test_errors_of_others():
    found = sent(OwnError(object()))
    assert type(found) is InvalidSettingError
    assert str(found).startswith("the number is wrong (found: here; allowed: {")
    found = sent(OSError(2, "No such file", "x"))
    assert type(found) is RuntimeError
    assert str(found) == "FileNotFoundError: [Errno 2] No such file: 'x'"
    assert "Unspeakable" in str(sent(Unspeakable()))
    assert "MemoryError" in str(sent(MemoryError()))


def test_a_kind_that_is_no_error_of_ours():
    data = {**encode_error(PipezooError("what")), "kind": "SystemExit"}
    with pytest.raises(KeyError):
        decode_error(data)


def test_nothing_that_runs_what_it_reads_is_imported():
    for package in (pipezoo, pipezoo_core):
        for path in Path(package.__path__[0]).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                elif isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.save"):
                    names = ["pickle"]
                assert not {name.partition(".")[0] for name in names} & RUNS_WHAT_IT_READS, path
