"""From a model to a folder with its weights rounded to 8 or 4 bits, which loads without rounding them again."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipezoo.files.hub import DOWNLOADED
from pipezoo.files.model_files import ModelFiles, read_files
from pipezoo.loading.find import FoundModel
from pipezoo.loading.tokenizer import load_delegate
from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.config import SupportedEncoding
from pipezoo_core.decoder import DecoderPipelineModel, rounded_decoder
from pipezoo_core.errors import InvalidSettingError, PipezooError, UnsupportedModelError, UnwritableFileError
from pipezoo_core.file_names import CONFIG, GENERATION_CONFIG, WEIGHTS_INDEX
from pipezoo_core.local_file import readable
from pipezoo_core.tokenizer import eos_token_ids, gguf_end_tokens
from pipezoo_core.weights import rounding_entries, write_safetensors
from pipezoo_core.weights.progress import report_weights
from pipezoo_core.weights.safetensors_writer import WrittenTensor

__all__ = ["QuantizedSizes", "quantize_model"]

_MAX_FILE_BYTES = 5 * 10**9
_DTYPES = [encoding.value for encoding in SupportedEncoding if encoding.rounds_weights]


@dataclass(frozen=True, slots=True)
class QuantizedSizes:
    """What became of a model's weights.

    Attributes:
        before: bytes of their files.
        after: bytes of the new ones.
    """

    before: int
    after: int


def quantize_model(found: FoundModel, folder: Path, dtype: str) -> QuantizedSizes:
    """Writes a model into a new folder, its weights rounded to what a load with `dtype` rounds them to.

    The folder is there when it is whole. What ends the writing, an interrupt too, leaves nothing of it.

    Args:
        found: the model, all of its files on disk.
        folder: that does not exist yet.
        dtype: `int8` or `int4`.

    Raises:
        InvalidSettingError: the dtype is another, or one that the model does not support.
        UnwritableFileError: there is such a folder, or it cannot be written.
        UnsupportedModelError: the plugin brings a pipeline model of its own, or has no layer that would be rounded.
        CheckpointError: the files are damaged or cannot be read, or do not fit the config.
    """
    architecture = found.resolution.architecture
    encoding = _checked(architecture, dtype)
    _check_new(folder)
    files = read_files(found.checkpoint, architecture)
    tensors, before = _rounded(architecture, files, encoding), _num_bytes(files.weight_paths)
    with _made_whole(folder) as begun:
        _write_config(begun, found, files, dtype)
        _write_others(begun, files, architecture)
        _write_weights(begun, tensors)
        after = sum(path.stat().st_size for path in begun.glob("*.safetensors"))
    return QuantizedSizes(before, after)


def _checked(architecture: SupportedArchitecture, dtype: str) -> SupportedEncoding:
    supported = [name for name in _DTYPES if SupportedEncoding(name) in architecture.supported_encodings]
    if dtype not in supported:
        raise InvalidSettingError("weights cannot be rounded to this dtype", found=dtype, allowed=supported)
    return SupportedEncoding(dtype)


def _check_new(folder: Path) -> None:
    try:
        os.lstat(folder)
    except OSError:  # it is not there; what else is in the way is said when it is made
        return
    except ValueError as error:
        raise UnwritableFileError(
            "no folder can have such a name", found=f"{str(folder)!r}: {error}", cure="Give another folder."
        ) from error
    raise UnwritableFileError(f"{folder} exists, and nothing is written over", cure="Give a folder that is new.")


def _rounded(
    architecture: SupportedArchitecture, files: ModelFiles, encoding: SupportedEncoding
) -> list[WrittenTensor]:
    model = architecture.pipeline_model
    if not issubclass(model, DecoderPipelineModel):
        raise UnsupportedModelError(f"{architecture.name} is no decoder whose weights pipezoo knows how to round")
    adapter, config = architecture.weight_adapters[files.weights.format], files.huggingface_config
    tensors = rounded_decoder(model, config, files.weights.adapted(adapter, config), encoding)
    if not any(tensor.name.endswith(f"_{name}") for tensor in tensors for name in _DTYPES):
        raise UnsupportedModelError(f"{architecture.name} of this size has no weight that is rounded")
    return tensors


@contextmanager
def _made_whole(folder: Path) -> Iterator[Path]:
    """Yields a folder beside the wanted one, which takes its name at the end; it is gone when anything is raised."""
    begun = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    try:
        begun.mkdir(parents=True)
        yield begun
        begun.rename(folder)
    except BaseException as error:
        shutil.rmtree(begun, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, PipezooError):
            raise UnwritableFileError(
                f"{folder} cannot be written", found=error, cure="Free space, or give another folder."
            ) from error
        raise


def _num_bytes(paths: Sequence[Path]) -> int:
    sizes = []
    for path in paths:
        with readable(path):
            sizes.append(path.stat().st_size)
    return sum(sizes)


def _write_config(folder: Path, found: FoundModel, files: ModelFiles, dtype: str) -> None:
    config: dict[str, Any] = dict(found.checkpoint.config)
    if files.gguf is not None:  # whose config is the plugin's
        config = files.huggingface_config.to_dict()
        config["architectures"] = [found.resolution.architecture.name]
    config["quantization_config"] = rounding_entries(dtype)
    if "tie_word_embeddings" in config or getattr(files.huggingface_config, "tie_word_embeddings", False):
        config["tie_word_embeddings"] = files.huggingface_config.tie_word_embeddings  # as the weights are
    _write_json(folder / CONFIG, config)


def _write_others(folder: Path, files: ModelFiles, architecture: SupportedArchitecture) -> None:
    """Writes tokenizer, chat template and defaults of requests."""
    delegate = load_delegate(files, architecture)
    if files.gguf is not None:
        delegate.save_pretrained(folder)
        ends = eos_token_ids(delegate, files.huggingface_config, {}) | gguf_end_tokens(files.gguf.metadata)
        _write_json(folder / GENERATION_CONFIG, {"eos_token_id": sorted(ends)})
        return
    left_out = {CONFIG, WEIGHTS_INDEX}
    for pattern in (*DOWNLOADED, *architecture.files):
        for path in files.source.path.glob(pattern):
            if path.name not in left_out and path.suffix != ".safetensors" and path.is_file():
                shutil.copyfile(path, folder / path.name)


def _write_weights(folder: Path, tensors: Sequence[WrittenTensor]) -> None:
    num_done, num_all = 0, sum(tensor.num_bytes for tensor in tensors)
    report_weights(0, num_all)

    def written(tensor: WrittenTensor) -> None:
        nonlocal num_done
        num_done += tensor.num_bytes
        report_weights(num_done, num_all)

    write_safetensors(folder, tensors, max_file_bytes=_MAX_FILE_BYTES, written=written)


def _write_json(path: Path, entries: dict[str, Any]) -> None:
    path.write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n", encoding="utf-8")
