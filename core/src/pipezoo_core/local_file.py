"""Files and folders that users name: what the system says against reading them becomes a typed error."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipezoo_core.errors import PipezooError, UnreadableFileError

__all__ = ["is_folder", "local_path", "readable", "text_or_file"]

_MAX_TEXT_BYTES = 1 << 20


def local_path(text: str | Path) -> Path:
    """Returns the path that a user means; `~nobody` of a user that cannot be stays as it is."""
    try:
        return Path(text).expanduser()
    except (RuntimeError, ValueError):
        return Path(text)


def is_folder(path: Path) -> bool:
    """Whether there is such a folder, as far as can be seen: a text that no path can be is none."""
    try:
        return path.is_dir()
    except OSError:
        return False


def text_or_file(text: str) -> str:
    """Returns what the file holds that a text names; the text itself where there is no such file.

    Raises:
        UnreadableFileError: the file cannot be read, is no text in UTF-8, or is larger than any that is meant.
    """
    if not os.path.isfile(text):
        return text
    path = Path(text)
    with readable(path), path.open("rb") as file:
        data = file.read(_MAX_TEXT_BYTES + 1)
    if len(data) > _MAX_TEXT_BYTES:
        raise UnreadableFileError(f"{path} is too large to be read as text", allowed=f"at most {_MAX_TEXT_BYTES} bytes")
    try:
        return data.decode("utf-8-sig")  # Windows begins a text with a mark
    except UnicodeDecodeError as error:
        raise UnreadableFileError(f"{path} is no text", found=error, allowed="text in UTF-8") from error


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Runs what reads a file, or the files of a folder.

    Raises:
        UnreadableFileError: the system lets it not be read: permissions, a folder in place of a file, a name that is
            too long or has characters that no name has, a disk that fails.
    """
    try:
        yield
    except PipezooError:
        raise
    except (OSError, UnicodeEncodeError) as error:
        raise UnreadableFileError(
            f"{path} cannot be read", found=error, cure="Check that it exists, and that you may read it."
        ) from error
