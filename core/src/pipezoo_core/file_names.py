"""What the files of a model are called, and what a model on the Hub can be called. Opens none of them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePath

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "CONFIG",
    "GENERATION_CONFIG",
    "TOKENIZER_FILES",
    "WEIGHTS",
    "WEIGHTS_INDEX",
    "ggufs_in",
    "is_gguf",
    "is_hub_id",
    "pickles_among",
    "pickles_in",
]

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "tekken.json", "tiktoken.model", "vocab.json")
"""Each of them holds a vocabulary, alone or with others beside it."""

_GGUF = ".gguf"
_PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
_HUB_PART = r"\w(?:[\w.-]{0,94}\w)?"
_HUB_ID = re.compile(rf"(?!.*(?:--|\.\.)){_HUB_PART}/{_HUB_PART}(?<!\.git)", re.ASCII)


def is_gguf(name: str | PurePath) -> bool:
    """Tells by the ending of its name, in capitals or not, whether a file is GGUF."""
    return str(name).lower().endswith(_GGUF)


def ggufs_in(folder: Path) -> list[Path]:
    """Returns the GGUF files of a folder, sorted."""
    return sorted(path for path in folder.glob("*") if is_gguf(path))


def pickles_among(names: Iterable[str]) -> list[str]:
    """Returns, sorted, the names of files that pickle may have written: reading one can run code."""
    return sorted(name for name in names if name.lower().endswith(_PICKLES))


def pickles_in(folder: Path) -> list[str]:
    """Returns the names of a folder's pickles, sorted."""
    return pickles_among(path.name for path in folder.glob("*"))


def is_hub_id(text: str) -> bool:
    """Whether the Hub could have a repository `org/name` of this name: its client's rules, with an organization."""
    return _HUB_ID.fullmatch(text) is not None
