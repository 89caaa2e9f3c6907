"""A SentencePiece vocabulary (`tokenizer.model`), read without its library. Knows the file, not what is made of it.

The file is one protobuf message, `ModelProto` of `sentencepiece_model.proto`; only the fields that matter are read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from pipezoo_core.errors import UnsupportedTokenizerError

__all__ = ["sentencepiece_metadata"]

_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3  # of ModelProto
_PIECE, _SCORE, _TYPE = 1, 2, 3  # of SentencePiece
_MODEL_TYPE, _BPE = 3, 2  # of TrainerSpec
_SPECIAL_IDS = {"unknown_token_id": (40, 0), "bos_token_id": (41, 1), "eos_token_id": (42, 2)}  # field, default
_CHARACTER_MAP, _ADDS_PREFIX, _TRIMS, _ESCAPES = 2, 3, 4, 5  # of NormalizerSpec
_NORMAL = 1


def sentencepiece_metadata(data: bytes) -> dict[str, Any]:
    """Returns what a GGUF file's metadata would say of the vocabulary, for `tokenizer_from_gguf`.

    Args:
        data: the whole file.

    Raises:
        UnsupportedTokenizerError: it is no BPE vocabulary, or it changes text before it is cut into pieces.
        ValueError: the file is damaged.
    """
    messages = list(_fields(data))
    pieces = [dict(_fields(message)) for field, message in messages if field == _PIECES]
    trainer, normalizer = (
        dict(_fields(b"".join(message for field, message in messages if field == wanted)))
        for wanted in (_TRAINER, _NORMALIZER)
    )
    if not pieces or any(_PIECE not in piece for piece in pieces):
        raise ValueError("the SentencePiece vocabulary has no pieces")
    if trainer.get(_MODEL_TYPE, 1) != _BPE:
        raise UnsupportedTokenizerError("the SentencePiece vocabulary is not of the kind BPE", cure=_CURE)
    # An option that is left out is on, the character map aside.
    if normalizer.get(_CHARACTER_MAP) or normalizer.get(_TRIMS, 1) or not normalizer.get(_ESCAPES, 1):
        raise UnsupportedTokenizerError("the SentencePiece vocabulary normalizes text", cure=_CURE)
    ids = {name: _signed(trainer.get(field, default)) for name, (field, default) in _SPECIAL_IDS.items()}
    found = {
        "model": "llama",
        "tokens": [piece[_PIECE].decode("utf-8") for piece in pieces],
        "scores": [struct.unpack("<f", piece.get(_SCORE, bytes(4)))[0] for piece in pieces],
        "token_type": [piece.get(_TYPE, _NORMAL) for piece in pieces],  # the numbers are those of GGUF
        "add_space_prefix": bool(normalizer.get(_ADDS_PREFIX, 1)),
        "add_bos_token": ids["bos_token_id"] >= 0,
        **{name: id_ for name, id_ in ids.items() if id_ >= 0},
    }
    return {f"tokenizer.ggml.{name}": value for name, value in found.items()}


_CURE = "Add a tokenizer.json to the folder."


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yields a message's fields: numbers as they are, everything else as bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(message, at)
        else:
            size = {1: 8, 5: 4}.get(kind, len(message) + 1)
        if at + size > len(message):
            raise ValueError("the SentencePiece vocabulary is damaged")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, at + i + 1
    raise ValueError("the SentencePiece vocabulary is damaged")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
