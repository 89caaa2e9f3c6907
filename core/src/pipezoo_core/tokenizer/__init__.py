"""Text to tokens and back: chat templates, tokenizers out of folders and GGUF files, and text that streams."""

from pipezoo_core.tokenizer.end_tokens import eos_token_ids
from pipezoo_core.tokenizer.gguf import gguf_end_tokens, tokenizer_from_gguf
from pipezoo_core.tokenizer.loading import load_tokenizer, with_settings_of
from pipezoo_core.tokenizer.merges import merges_by_score
from pipezoo_core.tokenizer.text_stream import TextStream
from pipezoo_core.tokenizer.text_tokenizer import TextTokenizer

__all__ = [
    "TextStream",
    "TextTokenizer",
    "eos_token_ids",
    "gguf_end_tokens",
    "load_tokenizer",
    "merges_by_score",
    "tokenizer_from_gguf",
    "with_settings_of",
]
