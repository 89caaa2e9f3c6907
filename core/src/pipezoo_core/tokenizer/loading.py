"""Reads the tokenizer of a model's folder, with transformers. Downloads nothing and runs no code of the folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pipezoo_core.errors import UnsupportedTokenizerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["load_tokenizer"]

_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "tekken.json", "tiktoken.model", "vocab.json")


def load_tokenizer(
    folder: Path, read: Callable[[Path], PreTrainedTokenizerBase | None] | None = None
) -> PreTrainedTokenizerBase:
    """Loads a folder's tokenizer.

    A tokenizer.json is complete, so it is read as it is, whatever class the folder names; anything else is shown to
    the plugin first, and then transformers chooses the class.

    Args:
        folder: where the files are.
        read: the plugin's reader, `SupportedArchitecture.tokenizer`.

    Raises:
        UnsupportedTokenizerError: the files are missing or damaged, or of a kind that transformers cannot read
            without running the folder's code.
    """
    try:
        return _load(folder, read)
    except UnsupportedTokenizerError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception, transformers nearly every other kind
        raise UnsupportedTokenizerError(
            f"the tokenizer in {folder} cannot be read",
            found=f"{type(error).__name__}: {error}",
            allowed="a tokenizer.json, or files that transformers reads without remote code",
            cure="Add a tokenizer.json to the folder.",
        ) from error


def _load(folder: Path, read: Callable[[Path], PreTrainedTokenizerBase | None] | None) -> PreTrainedTokenizerBase:
    if (folder / "tokenizer.json").is_file():
        from transformers import PreTrainedTokenizerFast

        return cast("PreTrainedTokenizerBase", PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True))
    if read is not None and (own := read(folder)) is not None:
        return own
    if not any((folder / name).is_file() for name in _FILES):
        raise UnsupportedTokenizerError(
            f"{folder} has no tokenizer", allowed=f"one of {', '.join(_FILES)}", cure="Download the model again."
        )
    from transformers import AutoTokenizer  # imports every model's config class: two seconds

    return cast(
        "PreTrainedTokenizerBase",
        AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False),
    )
