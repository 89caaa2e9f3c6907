"""Files that contradict themselves, or that cannot be read at all, are typed errors that name what is wrong."""

import json
import os
import struct

import gguf
import pytest
import torch
from gguf_files import write_llama_gguf
from safetensors.torch import save_file
from tiny_models import make_llama

from pipezoo import registry
from pipezoo_core.errors import (
    CheckpointError,
    CorruptCheckpointError,
    ModelNotFoundError,
    PipezooError,
    UnreadableFileError,
    UnsupportedCheckpointError,
)
from pipezoo_core.json_file import read_json_object
from pipezoo_core.lora import open_adapter
from pipezoo_core.weights import open_gguf, open_safetensors

STRING, UINT32, FLOAT32 = 8, 4, 0


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def gguf_bytes(entries=(), tensors=(), *, version=3, order="<", alignment=32, data=bytes(256)):
    """A GGUF file: entries are key and number, tensors are name, sizes, type and offset."""
    head = b"GGUF" + struct.pack(f"{order}IQQ", version, len(tensors), len(entries))
    head += b"".join(text(key) + struct.pack("<II", UINT32, value) for key, value in entries)
    for name, sizes, type_, offset in tensors:
        head += text(name) + struct.pack("<I", len(sizes)) + b"".join(struct.pack("<Q", size) for size in sizes)
        head += struct.pack("<IQ", type_, offset)
    return head + bytes(-len(head) % alignment) + data


SOUND = [("a", (4, 4), FLOAT32, 0), ("b", (4, 4), FLOAT32, 64)]
DAMAGED = {
    "a key twice": (gguf_bytes([("x", 1), ("x", 2)]), "the key 'x' is there twice"),
    "a tensor twice": (gguf_bytes((), [SOUND[0], ("a", (4, 4), FLOAT32, 64)]), "the tensor 'a' is there twice"),
    "tensors that overlap": (gguf_bytes((), [SOUND[0], ("b", (4, 4), FLOAT32, 32)]), "within another or not aligned"),
    "not aligned": (gguf_bytes((), [SOUND[0], ("b", (4, 4), FLOAT32, 72)]), "within another or not aligned"),
    "beyond its end": (gguf_bytes((), [("a", (4, 1 << 30), FLOAT32, 0)]), "ends at byte"),
    "a size of 2^63": (gguf_bytes((), [("a", (4, 1 << 63), FLOAT32, 0)]), "ends at byte"),
    "an odd alignment": (gguf_bytes([("general.alignment", 24)], SOUND), "general.alignment is 24"),
    "no alignment": (gguf_bytes([("general.alignment", 0)], SOUND), "general.alignment is 0"),
    "more entries than bytes": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 62), "within its header"),
    "more tensors than bytes": (b"GGUF" + struct.pack("<IQQ", 3, 1 << 62, 0), "within its header"),
    "five dimensions": (gguf_bytes((), [("a", (1, 1, 1, 1, 4), FLOAT32, 0)]), "5 dimensions"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_gguf_file_that_contradicts_itself(tmp_path, case):
    data, reason = DAMAGED[case]
    (tmp_path / "model.gguf").write_bytes(data)
    with pytest.raises(CorruptCheckpointError, match=reason):
        open_gguf(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (gguf_bytes(version=1), "version.*1"),
        (gguf_bytes(version=4), "version.*4"),
        (gguf_bytes(order=">"), "byte order"),
        (gguf_bytes((), [("a", (32, 4), 4, 0)]), "Q4_2|type"),  # retired
        (gguf_bytes((), [("a", (32, 4), 999, 0)]), "999"),
    ],
)
def test_a_gguf_file_of_another_kind_is_named(tmp_path, data, reason):
    (tmp_path / "model.gguf").write_bytes(data)
    with pytest.raises(UnsupportedCheckpointError, match=reason):
        open_gguf(tmp_path / "model.gguf")


def test_a_sound_file_of_the_same_maker(tmp_path):
    (tmp_path / "model.gguf").write_bytes(gguf_bytes([("x", 1)], SOUND))
    found = open_gguf(tmp_path / "model.gguf")
    assert found.metadata == {"x": 1}
    assert {name: tensor.shape for name, tensor in found.weights.items()} == {"a": (4, 4), "b": (4, 4)}


def write_safetensors(path, header, data=b""):
    head = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)


def entry(begin, end, shape=(4,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


SAFETENSORS = {
    "a name twice": (f'{{"a": {json.dumps(entry(0, 16))}, "a": {json.dumps(entry(16, 32))}}}', 32),
    "overlapping": ({"a": entry(0, 16), "b": entry(8, 24)}, 24),
    "a gap": ({"a": entry(0, 16), "b": entry(20, 36)}, 36),
    "bytes left over": ({"a": entry(0, 16)}, 20),
    "cut off": ({"a": entry(0, 16)}, 12),
    "another size": ({"a": entry(0, 16, shape=(5,))}, 16),
    "a size of 2^63": ({"a": entry(0, 16, shape=(1 << 63,))}, 16),
    "a negative size": ({"a": entry(0, 16, shape=(-4,))}, 16),
    "no offsets": ({"a": {"dtype": "F32", "shape": [4]}}, 16),
    "an entry that is a number": ({"a": 5}, 0),
    "no JSON": ("{" * 50, 0),
    "nested without end": ("[" * 100_000, 0),
}


@pytest.mark.parametrize("case", SAFETENSORS)
def test_a_safetensors_file_that_contradicts_itself(tmp_path, case):
    header, num_bytes = SAFETENSORS[case]
    write_safetensors(tmp_path / "model.safetensors", header, bytes(num_bytes))
    with pytest.raises(CorruptCheckpointError):
        open_safetensors([tmp_path / "model.safetensors"])


@pytest.mark.parametrize("size", [0, 7, 8, 1 << 30, (1 << 64) - 1])
def test_a_safetensors_header_of_another_length(tmp_path, size):
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", size) + b"{}")
    with pytest.raises(CorruptCheckpointError):
        open_safetensors([tmp_path / "model.safetensors"])


@pytest.mark.parametrize("content", ['{"a": 1, "a": 1}', '{"b": {"a": 1, "a": 2}}'])
def test_a_json_key_that_is_there_twice(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CorruptCheckpointError, match=r"twice|duplicate"):
        read_json_object(tmp_path / "config.json")


def test_a_json_file_that_is_a_bomb_of_lists(tmp_path):
    (tmp_path / "config.json").write_text('{"a": [' + "[]," * (1 << 20) + "[]]}")
    with pytest.raises(CorruptCheckpointError):
        read_json_object(tmp_path / "config.json")


@pytest.mark.parametrize(
    "model", ["~nosuchuser/model", "~nosuchuser", "x" * 5000, "a/" * 3000, "\udcff/model", "a\0b", ""]
)
def test_names_that_no_file_can_have(model):
    with pytest.raises(PipezooError):
        registry.load(model)


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_files_that_may_not_be_read(tmp_path, name):
    make_llama().save_pretrained(tmp_path)
    (tmp_path / name).chmod(0)
    with pytest.raises(UnreadableFileError, match=name):
        registry.load(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "generation_config.json", "tokenizer.json"])
def test_folders_in_the_place_of_files(tmp_path, name):
    make_llama().save_pretrained(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).mkdir()
    with pytest.raises(PipezooError):
        registry.load(tmp_path)


def test_experts_in_a_gguf_file_that_calls_itself_llama(tmp_path):
    path = tmp_path / "model.gguf"
    write_llama_gguf(path, make_llama(vocab_size=259), metadata={"llama.expert_count": 8})
    with pytest.raises(PipezooError, match="expert"):
        registry.load(path)


def test_an_adapter_whose_path_has_an_equals_sign(tmp_path):
    """What exists is a path; a name stands before it where the whole text is none."""
    folder = tmp_path / "rank=4"
    folder.mkdir()
    with pytest.raises(ModelNotFoundError, match=r"rank=4 has no adapter_config\.json"):
        open_adapter(str(folder))
    with pytest.raises(ModelNotFoundError, match=r"rank=4 has no adapter_config\.json"):
        open_adapter(f"mine={folder}")


def test_a_file_that_is_cut_while_it_is_open(tmp_path):
    """What was there when the header was read is gone: an error, and not a signal."""
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(1 << 16)}, path)
    tensor = open_safetensors([path])["a"]
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CheckpointError, match="shorter"):
        tensor.load()
    gguf_path = tmp_path / "model.gguf"
    write_llama_gguf(gguf_path, make_llama(vocab_size=259), quantization=gguf.GGMLQuantizationType.F32)
    weights = open_gguf(gguf_path).weights
    os.truncate(gguf_path, gguf_path.stat().st_size // 2)
    with pytest.raises(CheckpointError, match="shorter"):
        [tensor.load() for tensor in weights.values()]
