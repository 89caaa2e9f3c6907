"""The tokens of a vocabulary that are never text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["special_texts"]


def special_texts(delegate: PreTrainedTokenizerBase) -> Mapping[int, str]:
    """Returns the names of the special tokens: those that are marked as special, and those that have a role."""
    added = delegate.added_tokens_decoder
    ids = {*delegate.all_special_ids, *(token for token, added_token in added.items() if added_token.special)}
    ids.discard(None)  # of a special token that the vocabulary lacks
    return {token: str(delegate.convert_ids_to_tokens(token)) for token in ids}
