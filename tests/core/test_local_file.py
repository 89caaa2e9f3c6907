"""A text that may name a file: what the file holds, or the text, or an error of ours."""

import os

import pytest

from pipezoo_core.errors import UnreadableFileError
from pipezoo_core.local_file import is_folder, local_path, readable, text_or_file

NO_FILES = [
    "",
    " ",
    "{}",
    "start: /a/",
    "a\0b",
    "\ud800",
    "\udc80",
    "x" * 10**6,
    "/" * 10**4,
    "~",
    "~nobody",
    ".",
    "/",
    "é\n😀",
]


@pytest.mark.parametrize("text", NO_FILES, ids=lambda text: ascii(text[:12]))
def test_a_text_that_names_no_file_is_itself(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert text_or_file(text) == text
    assert is_folder(local_path(text)) is (text.strip("/") in ("", ".", "~"))


def test_a_file_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    contents = {
        "plain": (b"[a-z]\n", "[a-z]\n"),
        "marked": (b"\xef\xbb\xbf{}", "{}"),
        "empty": (b"", ""),
        "é ü": ("é\r\n".encode(), "é\r\n"),
        "largest": (b"x" * 2**20, "x" * 2**20),
    }
    for name, (data, expected) in contents.items():
        (tmp_path / name).write_bytes(data)
        assert text_or_file(name) == text_or_file(str(tmp_path / name)) == expected
    (tmp_path / "link").symlink_to("plain")
    assert text_or_file("link") == "[a-z]\n"


def test_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "file"
    for data in (b"\xff\xfe{\0}\0", b"\x80", b"\xed\xa0\x80", b"x" * (2**20 + 1), "é".encode("latin-1")):
        path.write_bytes(data)
        with pytest.raises(UnreadableFileError, match=r"is no text|too large") as raised:
            text_or_file(str(path))
        assert len(str(raised.value)) < 1000


def test_what_is_no_readable_file(tmp_path):
    loop, broken, pipe = tmp_path / "loop", tmp_path / "broken", tmp_path / "pipe"
    loop.symlink_to(loop)
    broken.symlink_to("nowhere")
    os.mkfifo(pipe)
    for path in (loop, broken, pipe, tmp_path):  # a pipe would be waited for
        assert text_or_file(str(path)) == str(path)
    with pytest.raises(UnreadableFileError):
        text_or_file("/proc/self/mem")


@pytest.mark.parametrize(
    "error", [PermissionError(13, "no"), OSError(5, "disk"), UnicodeEncodeError("u", "x", 0, 1, "r")]
)
def test_what_the_system_says_against_reading(error, tmp_path):
    with pytest.raises(UnreadableFileError, match="cannot be read"), readable(tmp_path):
        raise error
