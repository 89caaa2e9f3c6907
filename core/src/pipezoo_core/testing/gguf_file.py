"""Writes the GGUF file of a reference, as llama.cpp's converter of its architecture does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
from torch import Tensor

from pipezoo_core.testing.failures import NotCheckedError
from pipezoo_core.testing.gguf_metadata import architecture_of, granted, metadata_of
from pipezoo_core.testing.gguf_tensors import KNOWN_ARCHITECTURES, converted
from pipezoo_core.testing.reference import make_reference
from pipezoo_core.testing.subject import Subject
from pipezoo_core.weights import of_text_part

__all__ = ["as_files_say", "write_gguf"]

_ADDERS = {bool: "add_bool", float: "add_float32", int: "add_uint32", list: "add_array", str: "add_string"}


def as_files_say(subject: Subject) -> Subject:
    """Returns a subject whose config says what no file of its type can say otherwise: the same where it does.

    Raises:
        NotCheckedError: the reference is none of transformers', or the `gguf` package does not know its architecture.
    """
    config = getattr(subject.reference, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise NotCheckedError("the reference has no config of transformers': a method write_gguf of the test class")
    text = config.get_text_config()
    if architecture_of(text) not in KNOWN_ARCHITECTURES:
        raise NotCheckedError(
            f"the gguf package has no architecture {architecture_of(text)!r}: if files call it otherwise, "
            "a method write_gguf of the test class writes one"
        )
    changes = {name: value for name, value in granted(text).items() if getattr(text, name) != value}
    if not changes:
        return subject
    said = dict(subject.config)
    said = {**said, "text_config": {**said["text_config"], **changes}} if "text_config" in said else {**said, **changes}
    reference = make_reference(said, type(subject.reference))
    return Subject(subject.name, said, subject.architecture, reference, subject.folder / "as_files_say")


def write_gguf(subject: Subject, path: Path) -> object:
    """Writes the file; returns what it says: the same for configs that differ in what a file does not say.

    Raises:
        NotCheckedError: the `gguf` package has no name for one of the tensors.
    """
    reference: Any = subject.reference
    config = reference.config.get_text_config()
    architecture = architecture_of(config)
    stored = {name: tensor.load().float() for name, tensor in of_text_part(subject.weights).items()}
    tensors, metadata = converted(stored, architecture, config), metadata_of(config)
    _write(path, architecture, metadata, tensors)
    return repr((architecture, metadata, sorted((name, tensor.shape) for name, tensor in tensors.items())))


def _write(path: Path, architecture: str, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        getattr(writer, _ADDERS[type(value)])(f"{architecture}.{key}", value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
