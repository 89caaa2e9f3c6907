"""How few tokens a text can be, so that a prompt that cannot fit is refused before it is tokenized."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers.models import BPE
    from tokenizers.normalizers import Normalizer
    from tokenizers.pre_tokenizers import PreTokenizer
    from transformers import PreTrainedTokenizerBase

__all__ = ["TokenLength"]

_NUM_BYTES, _NUM_ASCII, _CONTINUATION = 256, 128, range(128, 192)
_NUM_COMPOSED = 4  # characters that become one in Unicode's NFC: no character decomposes into more
_KEEP_TEXT = ("ByteLevel", "Digits", "Metaspace", "Split")  # pre-tokenizers that drop nothing, unless they say so


@dataclass(frozen=True, slots=True)
class TokenLength:
    """How much text a token of a vocabulary can stand for.

    Attributes:
        max_characters: most characters of a text that become one token.
        vanishing: characters that may become none, because the vocabulary lacks their bytes.
    """

    max_characters: int
    vanishing: str = ""

    @classmethod
    def of(cls, delegate: PreTrainedTokenizerBase) -> TokenLength | None:
        """Reads a tokenizer's settings.

        Returns:
            None where nothing is certain: the tokenizer may drop text, join unknown characters, or have a token that
            takes the spaces around it. Only BPE of bytes, or with tokens for single bytes, is certain.
        """
        backend = getattr(delegate, "backend_tokenizer", None)
        if backend is None:
            return None
        from tokenizers import models

        model = backend.model
        normalizers = list(_parts(backend.normalizer, "normalizers"))
        pre_tokenizers = list(_parts(backend.pre_tokenizer, "pretokenizers"))
        keeps_all = (
            isinstance(model, models.BPE)
            and all(_keeps_text(part) for part in normalizers)
            and all(part["type"] in _KEEP_TEXT and part.get("behavior") != "Removed" for part in pre_tokenizers)
            and not any(token.lstrip or token.rstrip for token in backend.get_added_tokens_decoder().values())
        )
        vanishing = _vanishing(model, pre_tokenizers) if keeps_all else None
        if vanishing is None:
            return None
        composed = _NUM_COMPOSED if any(part["type"] == "NFC" for part in normalizers) else 1
        return cls(composed * max(len(piece) for piece in backend.get_vocab(with_added_tokens=True)), vanishing)

    def fewest_tokens(self, text: str) -> int:
        """Returns a number that the text's tokens are not below."""
        return -(-(len(text) - sum(map(text.count, self.vanishing))) // self.max_characters)


def _parts(component: Normalizer | PreTokenizer | None, name: str) -> Iterator[Mapping[str, Any]]:
    """Reads the settings of what a sequence consists of; those of the whole tokenizer hold its vocabulary, too."""
    if component is not None:
        yield from _flat(json.loads(component.__getstate__()), name)


def _flat(part: Mapping[str, Any], name: str) -> Iterator[Mapping[str, Any]]:
    if part["type"] == "Sequence":
        for inner in part[name]:
            yield from _flat(inner, name)
    else:
        yield part


def _keeps_text(normalizer: Mapping[str, Any]) -> bool:
    if normalizer["type"] == "Replace":
        text = normalizer["pattern"].get("String")
        return text is not None and len(text) <= len(normalizer["content"])
    return normalizer["type"] in ("NFC", "Prepend")


def _vanishing(model: BPE, pre_tokenizers: list[Mapping[str, Any]]) -> str | None:
    """Returns the characters without any byte in the vocabulary; None where these are not only ASCII's."""
    if not any(part["type"] == "ByteLevel" for part in pre_tokenizers):
        return "" if model.byte_fallback and all(_has(model, f"<0x{byte:02X}>") for byte in range(_NUM_BYTES)) else None
    letters = _letters_of_bytes()
    if not all(_has(model, letters[byte]) for byte in _CONTINUATION):  # every other character has one of these
        return None
    return "".join(chr(byte) for byte in range(_NUM_ASCII) if not _has(model, letters[byte]))


def _has(model: BPE, piece: str) -> bool:
    return model.token_to_id(piece) is not None


def _letters_of_bytes() -> dict[int, str]:
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = set(ByteLevel.alphabet())
    others = iter(sorted(letter for letter in alphabet if ord(letter) >= _NUM_BYTES))
    return {byte: chr(byte) if chr(byte) in alphabet else next(others) for byte in range(_NUM_BYTES)}
