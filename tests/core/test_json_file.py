"""JSON files of others: small ones are read, and nothing in them ends the parser or fills the memory."""

import json

import pytest

from pipezoo_core.errors import CorruptCheckpointError
from pipezoo_core.json_file import MAX_JSON_BYTES, read_json_object

FOUND = {"name": "größe", "sizes": [1, 2.5, None]}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_an_object_is_read(tmp_path, encoding):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(FOUND, ensure_ascii=False), encoding)
    assert read_json_object(path) == FOUND


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe\xfa", "is not JSON"),
        (b'{"a": ' + b"[" * 200_000, "is not JSON"),
        (b'{"a": ' + b"1" * 10_000 + b"}", "is not JSON"),
        (b"[]", r"is not a JSON object \(found: list\)"),
        (b"null", "is not a JSON object"),
        (b" " * MAX_JSON_BYTES + b"{}", f"is too large to be read as JSON .allowed: at most {MAX_JSON_BYTES} bytes"),
    ],
    ids=["empty", "truncated", "no text", "nested", "long number", "a list", "null", "large"],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_bytes(text)
    with pytest.raises(CorruptCheckpointError, match=rf"a\.json {message}"):
        read_json_object(path)


def test_the_limit_is_the_callers(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    assert read_json_object(path, max_bytes=8) == {"a": 1}
    with pytest.raises(CorruptCheckpointError, match="at most 7 bytes"):
        read_json_object(path, max_bytes=7)
