"""How much text one token can stand for, so that a prompt that cannot fit is refused before it is tokenized."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["max_characters_per_token"]

_NUM_BYTES = 256
_NUM_COMPOSED = 4  # characters that become one in Unicode's NFC: no character decomposes into more
_KEEP_TEXT = ("ByteLevel", "Digits", "Metaspace", "Split")  # pre-tokenizers that drop nothing, unless they say so


def max_characters_per_token(delegate: PreTrainedTokenizerBase) -> int | None:
    """Returns the greatest number of characters of a text that can become one token.

    Returns:
        None where that is not certain: the tokenizer may drop text, join unknown characters, or have a token that takes
        the spaces around it. Only BPE of bytes, or with tokens for single bytes, is certain.
    """
    backend = getattr(delegate, "backend_tokenizer", None)
    if backend is None:
        return None
    settings = json.loads(backend.to_str())
    model, normalizers = settings["model"], list(_parts(settings["normalizer"], "normalizers"))
    pre_tokenizers = list(_parts(settings["pre_tokenizer"], "pretokenizers"))
    vocabulary = backend.get_vocab(with_added_tokens=True)
    keeps_all = (
        model["type"] == "BPE"
        and _has_all_bytes(model, pre_tokenizers)
        and all(_keeps_text(part) for part in normalizers)
        and all(part["type"] in _KEEP_TEXT and part.get("behavior") != "Removed" for part in pre_tokenizers)
        and not any(token["lstrip"] or token["rstrip"] for token in settings["added_tokens"])
    )
    if not keeps_all:
        return None
    composed = _NUM_COMPOSED if any(part["type"] == "NFC" for part in normalizers) else 1
    return composed * max(len(piece) for piece in vocabulary)


def _parts(part: Mapping[str, Any] | None, name: str) -> Iterator[Mapping[str, Any]]:
    if part is not None and part["type"] == "Sequence":
        for inner in part[name]:
            yield from _parts(inner, name)
    elif part is not None:
        yield part


def _keeps_text(normalizer: Mapping[str, Any]) -> bool:
    if normalizer["type"] == "Replace":
        text = normalizer["pattern"].get("String")
        return text is not None and len(text) <= len(normalizer["content"])
    return normalizer["type"] in ("NFC", "Prepend")


def _has_all_bytes(model: Mapping[str, Any], pre_tokenizers: list[Mapping[str, Any]]) -> bool:
    from tokenizers.pre_tokenizers import ByteLevel

    if any(part["type"] == "ByteLevel" for part in pre_tokenizers):
        return all(piece in model["vocab"] for piece in ByteLevel.alphabet())
    return model["byte_fallback"] and all(f"<0x{byte:02X}>" in model["vocab"] for byte in range(_NUM_BYTES))
