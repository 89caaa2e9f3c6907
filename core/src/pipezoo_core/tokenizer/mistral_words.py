"""The tokenizer.json of Mistral's larger vocabularies, which for a time was written with Llama 3's expression.

It cuts text into words in another way than the vocabulary was trained with, so `12345` and `camelCase` became other
tokens, and nothing said so. Which folders are meant is transformers' rule (`fix_mistral_regex`); they are mended where
words are in fact cut as Llama 3 does, and not where they are right already, or the tokenizer is one of Llama's.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, pre_tokenizers

from pipezoo_core.tokenizer.gguf_pre_tokenizers import TEKKEN

__all__ = ["carries_llamas_expression", "mend_words"]

_MODEL_TYPES = ("mistral", "mistral3", "voxtral", "ministral", "pixtral")
_LEAST_TOKENS = 100_000  # the vocabularies before had no expression
_LLAMAS_TOKEN = "<|begin_of_text|>"
_SAMPLE, _LLAMAS_WORDS = "12345 camelCase", ["123", "45", " camelCase"]


def carries_llamas_expression(folder: Path, tokenizer: Tokenizer) -> bool:
    """Returns whether the folder's tokenizer is Mistral's and cuts words as Llama 3 does.

    Raises:
        ValueError: the folder's config.json is damaged.
    """
    if tokenizer.get_vocab_size() <= _LEAST_TOKENS or tokenizer.pre_tokenizer is None:
        return False
    if tokenizer.token_to_id(_LLAMAS_TOKEN) is not None or not _is_of_mistral(folder / "config.json"):
        return False
    found = tokenizer.pre_tokenizer.pre_tokenize_str(_SAMPLE)
    return [_SAMPLE[begin:end] for _, (begin, end) in found] == _LLAMAS_WORDS


def mend_words(tokenizer: Tokenizer) -> None:
    """Gives the tokenizer the expression that Mistral's vocabularies were trained with, in place."""
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(TEKKEN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _is_of_mistral(config_path: Path) -> bool:
    """Returns whether the model is one whose files were written before the mistake was found."""
    config = json.loads(config_path.read_bytes()) if config_path.is_file() else {}
    written_by = str(config.get("transformers_version") or "0")
    return config.get("model_type") in _MODEL_TYPES and written_by.split(".")[0] in ("0", "1", "2", "3", "4")
