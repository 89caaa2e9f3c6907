"""Finds a model's files: a Hub repository, a local folder, a GGUF file, or weights shipped in an installed package.

A Hub repository comes in two steps, so that a model no plugin serves costs only its config.json: `locate` fetches
that, `download` the rest, of the same commit. Knows file names, nothing of plugins or tensors.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipezoo_core.errors import (
    HubUnreachableError,
    InvalidSettingError,
    ModelNotFoundError,
    UnsafeCheckpointError,
    UnsupportedCheckpointError,
    shown,
)
from pipezoo_core.file_names import (
    CONFIG,
    GENERATION_CONFIG,
    TOKENIZER_FILES,
    WEIGHTS_INDEX,
    ggufs_in,
    is_gguf,
    is_hub_id,
    pickles_among,
)
from pipezoo_core.gguf_parts import parts_of_one_model
from pipezoo_core.hub_download import download_file, download_files, list_files
from pipezoo_core.json_file import read_json_object
from pipezoo_core.local_file import local_path, readable

__all__ = ["DOWNLOADED", "ModelSource", "download", "locate", "read_config"]

_CONFIG_FILES = (CONFIG, GENERATION_CONFIG)
_WEIGHTS = "model*.safetensors"  # not `consolidated.safetensors`, the same weights once more

DOWNLOADED = (
    *_CONFIG_FILES,
    _WEIGHTS,
    WEIGHTS_INDEX,
    *TOKENIZER_FILES,
    "*.model",  # vocabularies of other names
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
)
"""Patterns of what is downloaded of a repository that has safetensors, besides other shards that its index names."""

_PACKAGE = "pkg:"
_PATHS = (".", "/", "~")
_ENDINGS = (".safetensors", ".json", ".bin", ".pt", ".pth")
_PAGE = re.compile(
    r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<id>[^/?#]+/[^/?#]+)/?"
    r"(?:(?:tree|blob|resolve)/(?P<revision>[^/?#]+).*)?"
)
_FORMS = 'a Hub id "org/name", a folder, a .gguf file, or "pkg:<import name>"'


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model's files are.

    Attributes:
        name: what the user asked for.
        path: a folder with a config.json, or a single .gguf file.
        commit: the commit of the Hub repository `name`; None for files that were never on the Hub.
    """

    name: str
    path: Path
    commit: str | None = None


def locate(source: str | Path, *, revision: str | None = None) -> ModelSource:
    """Finds a model; of a Hub repository only config.json is downloaded, or its only GGUF file where it has no other.

    Args:
        source: a Hub id, a folder, a .gguf file, or `pkg:` and an import name. What exists on disk is local.
        revision: branch, tag or commit of a Hub repository; None takes its main branch.

    Raises:
        ModelNotFoundError: there is no such thing, or the text is of no known form.
        InvalidSettingError: a revision is given for what is not on the Hub.
        UnsafeCheckpointError: the repository has only pickle weights.
        UnsupportedCheckpointError: there are several GGUF files and no config.json, or a file of another kind.
        MissingShardError: parts of a split GGUF model are missing.
        UnreadableFileError: what is on disk cannot be read.
        GatedModelError: the Hub refuses access.
        HubUnreachableError: the Hub cannot be asked and the files are not cached.
        DownloadError: a download did not arrive whole, or cannot be stored.
    """
    if not isinstance(source, str | Path):
        raise ModelNotFoundError("no model has such a name", found=shown(source), allowed=_FORMS)
    name = _without_address(source) if isinstance(source, str) else str(source)
    if isinstance(source, str) and not name.startswith(_PACKAGE) and not _is_local(name):
        if not is_hub_id(name):
            raise ModelNotFoundError(f"{name!r} is neither on disk nor a name on the Hub", allowed=_FORMS)
        return _on_hub(name, revision)
    if revision is not None:
        raise InvalidSettingError(
            f"{name!r} has no revisions", found=f"revision={shown(revision)}", allowed="a revision of a Hub repository"
        )
    path = _package_folder(name) if name.startswith(_PACKAGE) else local_path(name)
    with readable(path):
        return ModelSource(name, _in_folder(path) if path.is_dir() else _file(path))


def download(source: ModelSource, files: Sequence[str] = ()) -> ModelSource:
    """Returns the source with all its files on disk: the weights, and what its tokenizer needs.

    What is on disk already is not downloaded again. The weights are the files that the index names, where there is one.
    The path becomes a GGUF file where the repository has no other weights beside its config.json.

    Args:
        source: as `locate` returned it.
        files: patterns of further names that the plugin asks for, see `SupportedArchitecture.files`.

    Raises:
        UnsafeCheckpointError: the repository has only pickle weights.
        UnsupportedCheckpointError: it has several GGUF files, or no weights that can be read.
        GatedModelError: the Hub refuses access.
        CorruptCheckpointError: the index is damaged.
        HubUnreachableError: the Hub cannot be asked and not all files are cached.
        DownloadError: a download did not arrive whole, or cannot be stored.
    """
    if source.commit is None or is_gguf(source.path):
        return source
    from pipezoo_core.weights import safetensors_names  # imports torch

    folder = download_files(source.name, source.commit, (*DOWNLOADED, *files))
    names = safetensors_names(folder)
    if others := [glob.escape(name) for name in names if not (folder / name).is_file()]:
        folder = download_files(source.name, source.commit, others)
    found = folder if names else _hub_gguf(source.name, folder)
    return replace(source, path=found)


def read_config(folder: Path) -> dict[str, Any]:
    """Returns the parsed config.json of a folder.

    Raises:
        ModelNotFoundError: there is none.
        CorruptCheckpointError: it is no JSON object, or larger than any config.
    """
    path = folder / CONFIG
    with readable(folder):
        if not path.is_file():
            raise ModelNotFoundError(
                f"{folder} has no {CONFIG}", cure="Give the folder that holds the whole checkpoint."
            )
    return read_json_object(path)


def _without_address(name: str) -> str:
    """Returns a name on the Hub for the address of its page, anything else as it is."""
    if "://" not in name or os.path.exists(name):
        return name
    match = _PAGE.fullmatch(name)
    if match is None:
        raise ModelNotFoundError(f"{shown(name)} is not the page of a model on the Hub", allowed=_FORMS)
    if match["revision"]:
        raise ModelNotFoundError(
            f"{shown(name)} is a page of one revision, or of one file",
            cure=f'Write "{match["id"]}", with revision="{match["revision"]}".',
        )
    return match["id"]


def _is_local(name: str) -> bool:
    is_path = name.startswith(_PATHS) or name.endswith((os.sep, *_ENDINGS)) or name.count("/") > 1 or "\\" in name
    return is_path or is_gguf(name) or os.path.exists(name)


def _package_folder(name: str) -> Path:
    package = name.removeprefix(_PACKAGE)
    try:  # a dotted name would import its parent
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except ValueError:
        spec = None
    folders = spec and spec.submodule_search_locations
    if not folders:
        raise ModelNotFoundError(
            f"no package {package!r} is installed",
            allowed=f"{_PACKAGE}<import name>, without dots",
            cure="Check the spelling, and that the package is installed for this Python.",
        )
    return Path(next(iter(folders)))


def _in_folder(folder: Path) -> Path:
    ggufs = ggufs_in(folder)
    if (folder / CONFIG).is_file() and (not ggufs or any(folder.glob("*.safetensors"))):
        return folder
    if not ggufs:
        raise ModelNotFoundError(f"{folder} holds no model", allowed=f"{CONFIG} with its weights, or one .gguf file")
    return folder / _of_one_model(str(folder), [path.name for path in ggufs])[0]


def _file(path: Path) -> Path:
    if not path.exists():
        raise ModelNotFoundError(f"no such file or folder: {path}", allowed=_FORMS, cure="Check the spelling.")
    if not is_gguf(path) or not path.is_file():
        raise UnsupportedCheckpointError(
            f"{path} is not a model by itself", allowed=f"a .gguf file, or the folder of a {CONFIG}"
        )
    return path


def _on_hub(repository: str, revision: str | None) -> ModelSource:
    folder = download_files(repository, revision, _CONFIG_FILES)
    found = folder if (folder / CONFIG).is_file() else _hub_gguf(repository, folder)
    return ModelSource(repository, found, folder.name)


def _hub_gguf(repository: str, folder: Path) -> Path:
    """Returns the only GGUF model of a repository without safetensors, downloaded; of several parts the first one."""
    cached = ggufs_in(folder)
    try:
        names = list_files(repository, folder.name)
    except HubUnreachableError:
        if not cached:
            raise
        return folder / _of_one_model(repository, [path.name for path in cached])[0]
    ggufs = [name for name in names if is_gguf(name)]
    if ggufs:
        parts = [download_file(repository, folder.name, name) for name in _of_one_model(repository, ggufs)]
        return parts[0]
    pickles = pickles_among(names)
    if pickles:
        raise UnsafeCheckpointError(
            f"{repository!r} has only pickle weights, which can run code when loaded",
            found=pickles,
            allowed="safetensors or GGUF",
            cure="Look for a conversion to safetensors, or a revision that has them.",
        )
    raise UnsupportedCheckpointError(
        f"{repository!r} has no weights that can be read", found=names, allowed=f"{_WEIGHTS} with {CONFIG}, or a .gguf"
    )


def _of_one_model(where: str, ggufs: list[str]) -> list[str]:
    """Returns the parts of the only model among these, in order."""
    parts = parts_of_one_model(ggufs)
    if parts is None:
        raise UnsupportedCheckpointError(
            f"{where!r} has several GGUF files", found=ggufs, cure="Download one (hf download) and give its path."
        )
    return parts
