"""Messages stay short, whatever they have to show."""

import copy
import pickle

import pytest

from pipezoo_core import errors
from pipezoo_core.errors import (
    CheckpointMismatchError,
    InsufficientMemoryError,
    InvalidSettingError,
    PipezooError,
    shown,
)


class Unwritable:
    def __repr__(self):
        raise RuntimeError("no")

    __str__ = __repr__


HUGE = {
    "text": "x" * 10**6,
    "emoji": "😀" * 10**5,
    "surrogates": "\ud800" * 10**5,
    "bytes": b"x" * 10**6,
    "number": 10**5000,
    "negative": -(10**5000),
    "numbers": [10**5000] * 100,
    "names": ["x" * 10**5] * 10**4,
    "dict": dict.fromkeys(range(10**4), "x" * 1000),
    "nested": [[["x" * 10**4] * 100] * 100] * 100,
    "error": ValueError("x" * 10**6),
}


def size(text):
    return len(str(text).encode(errors="surrogatepass"))


@pytest.mark.parametrize("name", HUGE)
@pytest.mark.parametrize("part", ["what", "found", "allowed", "cure", "all"])
def test_a_message_is_below_a_kilobyte(name, part):
    value = HUGE[name]
    text = value if isinstance(value, str) else shown(value)
    parts = {"what": text, "found": value, "allowed": value, "cure": text}
    if part != "all":
        parts = {"what": "it is wrong", part: parts[part]}
    error = PipezooError(**parts)
    assert size(error) < 1000
    assert size(shown(value)) < 1000
    assert str(pickle.loads(pickle.dumps(InvalidSettingError("w", found=name)))) == f"w (found: {name})"


def test_a_long_message_keeps_the_beginning_and_the_end_of_each_part():
    message = str(PipezooError("it failed", found="begin" + "x" * 5000 + "end", allowed="a number", cure="Do it."))
    assert message.startswith("it failed (found: beginxx")
    assert message.endswith("xxend; allowed: a number). Do it.")


def test_what_cannot_be_written_is_shown():
    assert shown(10**5000) == "a number of 16610 bits"
    assert "Unwritable" in shown(Unwritable())
    assert shown("it's") == repr("it's")


def test_names_of_tensors():
    error = CheckpointMismatchError(missing=["n" * 1000 + str(i) for i in range(10_000)])
    assert size(error) < 1000
    assert len(error.missing) == 10_000


KINDS = [kind for name in errors.__all__ if isinstance(kind := getattr(errors, name), type)]
WAYS = {
    **{f"pickle {number}": number for number in range(pickle.HIGHEST_PROTOCOL + 1)},
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


class PluginsOwnError(InsufficientMemoryError):
    """One of a plugin's, whose constructor takes something else."""

    def __init__(self, number):
        super().__init__("the number is wrong", found=OSError(number))
        self.number = number


def made(kind):
    if kind is CheckpointMismatchError:
        return kind(missing=["b", "a"], wrong_shape=["c: [1] -> [2]"])
    return kind(7) if kind is PluginsOwnError else kind("what", found=["x", "y"], allowed=3, cure="Do this.")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [*KINDS, PluginsOwnError])
def test_every_error_survives_a_copy(kind, way):
    error = made(kind)
    error.add_note("a note")
    travel = WAYS[way]
    found = travel(error) if callable(travel) else pickle.loads(pickle.dumps(error, travel))
    assert type(found) is kind
    assert (str(found), found.args, found.__notes__) == (str(error), error.args, ["a note"])
    assert vars(found) == {**vars(error), "found": found.found}
    assert found.found == (str(error.found) if kind is PluginsOwnError else error.found)


@pytest.mark.parametrize("name", HUGE)
def test_whatever_was_found_can_travel(name):
    error = PipezooError("it failed", found=HUGE[name], allowed=lambda: None)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
