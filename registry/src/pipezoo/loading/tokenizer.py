"""The tokenizer of a model from its files, with no weights read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipezoo.files.model_files import ModelFiles
from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.tokenizer import (
    TextTokenizer,
    eos_token_ids,
    gguf_end_tokens,
    load_tokenizer,
    tokenizer_from_gguf,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["build_tokenizer", "load_delegate"]


def load_delegate(files: ModelFiles, architecture: SupportedArchitecture) -> PreTrainedTokenizerBase:
    """Returns the model's own tokenizer, as transformers knows it.

    Raises:
        UnsupportedTokenizerError: it is of a kind that is not known.
    """
    if files.gguf is not None:
        return tokenizer_from_gguf(files.gguf.metadata)
    return load_tokenizer(files.source.path, architecture.tokenizer)


def build_tokenizer(files: ModelFiles, delegate: PreTrainedTokenizerBase, *, max_length: int) -> TextTokenizer:
    """Builds the tokenizer of a model.

    Args:
        files: of the model.
        delegate: its own tokenizer.
        max_length: most tokens of a request, prompt and answer together.

    Raises:
        UnsupportedTokenizerError: it does not work.
    """
    further_ends = frozenset() if files.gguf is None else gguf_end_tokens(files.gguf.metadata)
    return TextTokenizer(
        delegate,
        max_length=max_length,
        sampling_params=files.sampling_params,
        eos_token_ids=eos_token_ids(delegate, files.huggingface_config, files.generation_config) | further_ends,
        vocab_size=files.huggingface_config.get_text_config().vocab_size,
    )
