"""Reads the tokenizer of a model's folder, with transformers. Downloads nothing and runs no code of the folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, cast

from pipezoo_core.errors import UnsupportedTokenizerError
from pipezoo_core.file_names import TOKENIZER_FILES
from pipezoo_core.panics import panics_as_exceptions
from pipezoo_core.tokenizer.mistral_words import carries_llamas_expression, mend_words
from pipezoo_core.tokenizer.sentencepiece_folder import read_sentencepiece
from pipezoo_core.tokenizer.text_growth import check_growth

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["load_tokenizer", "with_settings_of"]

_CONFIG = "tokenizer_config.json"
_BESIDE_IT = ("special_tokens_map.json", "added_tokens.json", "chat_template.*")


def load_tokenizer(
    folder: Path, read: Callable[[Path], PreTrainedTokenizerBase | None] | None = None
) -> PreTrainedTokenizerBase:
    """Loads a folder's tokenizer.

    A tokenizer.json is complete, so it is read as it is, whatever class the folder names; anything else is shown to
    the plugin first. A SentencePiece tokenizer.model is read by ourselves; for the rest transformers chooses the class.

    Args:
        folder: where the files are.
        read: the plugin's reader, `SupportedArchitecture.tokenizer`.

    Raises:
        UnsupportedTokenizerError: the files are missing or damaged, or of a kind that transformers cannot read
            without running the folder's code.
    """
    try:
        with panics_as_exceptions():
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
        return _read(folder)
    if read is not None and (own := read(folder)) is not None:
        return own
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UnsupportedTokenizerError(
            f"{folder} has no tokenizer",
            allowed=f"one of {', '.join(TOKENIZER_FILES)}",
            cure="Download the model again.",
        )
    if (folder / "tokenizer.model").is_file():
        return with_settings_of(folder, read_sentencepiece(folder))
    from transformers import AutoTokenizer  # imports every model's config class: two seconds

    return cast(
        "PreTrainedTokenizerBase",
        AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False),
    )


def with_settings_of(folder: Path, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Returns the tokenizer with what a folder's files say besides the vocabulary: special tokens, chat template."""
    with TemporaryDirectory() as name:
        tokenizer.save_pretrained(name)
        if (folder / _CONFIG).is_file():
            own, of_folder = (json.loads((path / _CONFIG).read_bytes()) for path in (Path(name), folder))
            for token in of_folder.get("added_tokens_decoder", {}).values():
                token["normalized"] = False  # or a space before each text would be part of the token
            (Path(name) / _CONFIG).write_text(json.dumps({**own, **of_folder}), "utf-8")
        for path in (path for pattern in _BESIDE_IT for path in folder.glob(pattern)):
            shutil.copy(path, name)
        return _read(Path(name))


def _read(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import PreTrainedTokenizerFast

    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(
        folder, local_files_only=True, fix_mistral_regex=False
    )
    check_growth(tokenizer.backend_tokenizer)
    if carries_llamas_expression(folder, tokenizer.backend_tokenizer):
        mend_words(tokenizer.backend_tokenizer)
    return cast("PreTrainedTokenizerBase", tokenizer)
