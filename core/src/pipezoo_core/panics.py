"""Panics of libraries in Rust, as exceptions.

A panic reaches Python as a `PanicException`, which is a `BaseException`, so `except Exception` lets it through. Each
library has a class of its own of that name, which it does not export.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["LibraryPanicError", "panics_as_exceptions", "raise_unless_failure"]


class LibraryPanicError(RuntimeError):
    """A library in Rust met what it took for impossible."""


def raise_unless_failure(error: BaseException) -> None:
    """Raises what is neither an exception nor a panic: an interrupt, an exit."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


@contextmanager
def panics_as_exceptions() -> Iterator[None]:
    """Turns a panic within into a `LibraryPanicError`, which callers turn into an error that says what was read.

    Raises:
        LibraryPanicError: a library panicked.
    """
    try:
        yield
    except Exception:
        raise
    except BaseException as error:  # there is no class to name
        raise_unless_failure(error)
        raise LibraryPanicError(str(error)) from error
