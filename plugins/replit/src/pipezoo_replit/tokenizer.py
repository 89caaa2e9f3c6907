"""The tokenizer of Replit's first model, a SentencePiece vocabulary that its folder reads by code of its own.

Ours computes the same, and no code of the folder is run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, SentencePieceBackend

__all__ = ["ReplitLMTokenizer", "load_tokenizer"]

_VOCABULARY = "spiece.model"


class ReplitLMTokenizer(SentencePieceBackend):
    """Text to the pieces that the `sentencepiece` library finds, and back by the same library.

    Named as in tokenizer_config.json, whose `tokenizer_class` it is.
    """

    vocab_files_names = {"vocab_file": _VOCABULARY}  # noqa: RUF012 - transformers' own attribute
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012 - likewise

    def __init__(self, vocab_file: str, **settings: Any) -> None:
        names = {"eos_token": "<|endoftext|>", "unk_token": "<|unk|>", "pad_token": "<|pad|>"}
        super().__init__(vocab_file=vocab_file, **{**names, **settings})  # type: ignore[no-untyped-call]  # transformers'

    def _convert_id_to_token(self, index: int) -> str:
        # Where an embedding has more rows than the vocabulary has pieces, the rest are without text.
        piece: str = self.sp_model.id_to_piece(index) if index < self.vocab_size else ""
        return piece

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Returns the text of pieces, spaces at its ends included."""
        text: str = self.sp_model.decode(tokens)
        return text


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """Reads a folder's SentencePiece vocabulary; returns None where it has none."""
    if not (folder / _VOCABULARY).is_file():
        return None
    tokenizer: PreTrainedTokenizerBase = ReplitLMTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer
