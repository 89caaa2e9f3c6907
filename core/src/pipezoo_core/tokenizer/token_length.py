"""How few tokens a text can be, so that a prompt that cannot fit is refused before it is tokenized."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
        settings = json.loads(backend.to_str())
        model, normalizers = settings["model"], list(_parts(settings["normalizer"], "normalizers"))
        pre_tokenizers = list(_parts(settings["pre_tokenizer"], "pretokenizers"))
        keeps_all = (
            model["type"] == "BPE"
            and all(_keeps_text(part) for part in normalizers)
            and all(part["type"] in _KEEP_TEXT and part.get("behavior") != "Removed" for part in pre_tokenizers)
            and not any(token["lstrip"] or token["rstrip"] for token in settings["added_tokens"])
        )
        vanishing = _vanishing(model, pre_tokenizers) if keeps_all else None
        if vanishing is None:
            return None
        composed = _NUM_COMPOSED if any(part["type"] == "NFC" for part in normalizers) else 1
        return cls(composed * max(len(piece) for piece in backend.get_vocab(with_added_tokens=True)), vanishing)

    def fewest_tokens(self, text: str) -> int:
        """Returns a number that the text's tokens are not below."""
        return -(-(len(text) - sum(map(text.count, self.vanishing))) // self.max_characters)


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


def _vanishing(model: Mapping[str, Any], pre_tokenizers: list[Mapping[str, Any]]) -> str | None:
    """Returns the characters without any byte in the vocabulary; None where these are not only ASCII's."""
    if not any(part["type"] == "ByteLevel" for part in pre_tokenizers):
        has_all = model["byte_fallback"] and all(f"<0x{byte:02X}>" in model["vocab"] for byte in range(_NUM_BYTES))
        return "" if has_all else None
    letters = _letters_of_bytes()
    if any(letters[byte] not in model["vocab"] for byte in _CONTINUATION):  # every other character has one of these
        return None
    return "".join(chr(byte) for byte in range(_NUM_ASCII) if letters[byte] not in model["vocab"])


def _letters_of_bytes() -> dict[int, str]:
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = set(ByteLevel.alphabet())
    others = iter(sorted(letter for letter in alphabet if ord(letter) >= _NUM_BYTES))
    return {byte: chr(byte) if chr(byte) in alphabet else next(others) for byte in range(_NUM_BYTES)}
