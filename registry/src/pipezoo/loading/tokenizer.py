"""The tokenizer of a model from its files, with no weights read."""

from __future__ import annotations

from pipezoo.files.model_files import ModelFiles
from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.tokenizer import (
    TextTokenizer,
    eos_token_ids,
    gguf_end_tokens,
    load_tokenizer,
    tokenizer_from_gguf,
)

__all__ = ["build_tokenizer"]


def build_tokenizer(files: ModelFiles, architecture: SupportedArchitecture, *, max_length: int) -> TextTokenizer:
    """Builds the tokenizer of a model.

    Args:
        files: of the model.
        architecture: what the plugin runs it with.
        max_length: most tokens of a request, prompt and answer together.

    Raises:
        UnsupportedTokenizerError: it is of a kind that is not known, or does not work.
    """
    further_ends: frozenset[int] = frozenset()
    if files.gguf is not None:
        delegate = tokenizer_from_gguf(files.gguf.metadata)
        further_ends = gguf_end_tokens(files.gguf.metadata)
    else:
        delegate = load_tokenizer(files.source.path, architecture.tokenizer)
    return TextTokenizer(
        delegate,
        max_length=max_length,
        sampling_params=files.sampling_params,
        eos_token_ids=eos_token_ids(delegate, files.huggingface_config, files.generation_config) | further_ends,
        vocab_size=files.huggingface_config.get_text_config().vocab_size,
    )
