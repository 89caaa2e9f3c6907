"""Every error a user of pipezoo can meet.

A message says what went wrong, what was found, what is allowed, and the cure. Each error also derives from the
built-in exception that fits best, so that code which knows nothing of pipezoo can still catch it.
"""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Self

__all__ = [
    "AdapterInUseError",
    "AdapterNotFoundError",
    "AdapterSlotsError",
    "BrokenPluginError",
    "CacheIntegrityError",
    "CheckpointError",
    "CheckpointMismatchError",
    "ClosedPipelineError",
    "CorruptCheckpointError",
    "DownloadError",
    "EmptyPromptError",
    "ForkedProcessError",
    "GatedModelError",
    "HubUnreachableError",
    "IncompatiblePluginError",
    "InsufficientMemoryError",
    "InsufficientPagesError",
    "InvalidGrammarError",
    "InvalidRequestError",
    "InvalidSettingError",
    "LogitsProcessorError",
    "MissingDependencyError",
    "MissingShardError",
    "ModelNotFoundError",
    "NonFiniteLogitsError",
    "PipezooError",
    "PluginConflictError",
    "PluginError",
    "PluginNotFoundError",
    "PromptTooLongError",
    "RankLostError",
    "ServerFailedError",
    "ServerRefusedError",
    "ServerUnreachableError",
    "TensorMismatchError",
    "UnreadableFileError",
    "UnsafeCheckpointError",
    "UnsupportedAdapterError",
    "UnsupportedAttentionError",
    "UnsupportedCheckpointError",
    "UnsupportedModelError",
    "UnsupportedTokenizerError",
    "UnwritableFileError",
    "shown",
]

_MAX_NAMES = 8
_WRITTEN_WHOLE = (str, bytes, bytearray, Mapping)
_MAX_SIZE = 960  # bytes of a message
_MAX_PART = 220  # bytes of each of the four parts of a message that would be longer, with "found" and "allowed"


def shown(value: object) -> str:
    """Returns a value as a message can show it: as Python writes it, and where that is long, its beginning and end."""
    writer = reprlib.Repr()
    writer.maxstring = writer.maxother = writer.maxlong = 160
    try:
        return _shortened(writer.repr(value))
    except ValueError:  # Python writes no number of more than a few thousand digits
        return f"a number of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"


class PipezooError(Exception):
    """Base of all errors raised on purpose by pipezoo.

    Args:
        what: what went wrong, one clause without a full stop. Like the others it is shortened in the middle where the
            message would be longer than a kilobyte.
        found: what was found instead, if that helps.
        allowed: what would have been accepted.
        cure: what the reader can do about it, a sentence.
    """

    def __init__(self, what: str, *, found: object = None, allowed: object = None, cure: str | None = None) -> None:
        self.what = what
        self.found = found
        self.allowed = allowed
        self.cure = cure
        parts = [what, *(None if value is None else _listed(value) for value in (found, allowed)), cure]
        message = _message(*parts)
        if len(message.encode(errors="surrogatepass")) > _MAX_SIZE:
            message = _message(*(None if part is None else _shortened(part) for part in parts))
        super().__init__(message)

    @classmethod
    def restored(cls, message: str, fields: Mapping[str, Any]) -> Self:
        """Returns an error as it was, whatever its constructor takes.

        Args:
            message: its text.
            fields: what `__getstate__` returned.
        """
        layout: Any = cls  # its `__new__` may be that of another base, which refuses
        while layout.__module__ != "builtins":
            layout = layout.__base__
        error: Self = layout.__new__(cls)
        error.args = (message,)
        vars(error).update(fields)
        return error

    def __getstate__(self) -> dict[str, Any]:
        """Returns the attributes as numbers, text and lists of text: what they refer to may not travel."""
        return {name: _plain(value) for name, value in vars(self).items()}

    def __reduce__(self) -> tuple[Any, ...]:
        """Lets an error travel between processes, multiprocessing's for example."""
        return type(self).restored, (str(self), self.__getstate__())


def _message(what: str | None, found: str | None, allowed: str | None, cure: str | None) -> str:
    details = [f"{label}: {part}" for label, part in (("found", found), ("allowed", allowed)) if part is not None]
    message = f"{what}" + (f" ({'; '.join(details)})" if details else "")
    return f"{message}. {cure}" if cure else message


def _shortened(text: str) -> str:
    """Returns the beginning and the end of a text that is too long for a part of a message."""
    data = text.encode(errors="surrogatepass")
    if len(data) <= _MAX_PART:
        return text
    half = _MAX_PART // 2 - 2
    return f"{data[:half].decode(errors='ignore')} … {data[-half:].decode(errors='ignore')}"


def _listed(value: object) -> str:
    if isinstance(value, Collection) and not isinstance(value, _WRITTEN_WHOLE):
        names = ", ".join(_text(item) for item in itertools.islice(value, _MAX_NAMES)) or "none"
        return names + (f" and {len(value) - _MAX_NAMES} more" if len(value) > _MAX_NAMES else "")
    return _text(value)


def _text(value: object) -> str:
    return str(value) if isinstance(value, str) or not isinstance(value, int | Collection) else shown(value)


def _plain(value: object) -> Any:
    if value is None or isinstance(value, bool | float | str) or (isinstance(value, int) and abs(value) < 2**63):
        return value
    if isinstance(value, Collection) and not isinstance(value, _WRITTEN_WHOLE):
        return [_text(item) for item in value]
    return _text(value)


class InvalidSettingError(PipezooError, ValueError):
    """A setting of the pipeline or of sampling is unknown or out of range."""


class InvalidRequestError(PipezooError, ValueError):
    """A request cannot be served as it stands; the pipeline goes on with the next one."""


class EmptyPromptError(InvalidRequestError):
    """The prompt holds no tokens."""


class PromptTooLongError(InvalidRequestError):
    """The prompt leaves no room for a new token in the model's context."""


class AdapterNotFoundError(InvalidRequestError, LookupError):
    """A request names a LoRA adapter that is not loaded."""


class AdapterInUseError(PipezooError, RuntimeError):
    """A LoRA adapter cannot be unloaded, because requests use it."""


class AdapterSlotsError(PipezooError, RuntimeError):
    """A batch has more LoRA adapters than there are slots."""


class InvalidGrammarError(InvalidRequestError):
    """The JSON schema, regex or grammar that an answer has to follow is malformed or cannot be followed."""


class MissingDependencyError(PipezooError, ImportError):
    """A feature was asked for whose optional dependency is not installed."""


class PluginError(PipezooError):
    """Base of what can go wrong between a model and its plugin."""


class PluginNotFoundError(PluginError, LookupError):
    """No installed plugin serves this model type."""


class PluginConflictError(PluginError, LookupError):
    """Two installed distributions serve the same model type and none is pinned."""


class BrokenPluginError(PluginError, ImportError):
    """The plugin raised while it was imported or asked for its architectures; the cause is chained."""


class IncompatiblePluginError(PluginError, ImportError):
    """The plugin was made for another version of pipezoo-core."""


class UnsupportedModelError(PluginError, ValueError):
    """The plugin serves the model type but refuses this checkpoint's configuration."""


class UnsupportedAttentionError(PipezooError, ValueError):
    """An attention backend cannot do what the model needs."""


class UnsupportedTokenizerError(PipezooError, ValueError):
    """The tokenizer of a checkpoint is of a kind that is not known."""


class ModelNotFoundError(PipezooError, FileNotFoundError):
    """No such folder, file, package, repository or revision."""


class GatedModelError(PipezooError, PermissionError):
    """The repository exists, but its owner wants you to ask for access first."""


class HubUnreachableError(PipezooError, ConnectionError):
    """The Hub cannot be asked (offline mode, or no connection) and the files are not cached."""


class DownloadError(PipezooError, OSError):
    """A download did not arrive whole, or could not be stored."""


class CheckpointError(PipezooError):
    """Base of what can be wrong with a checkpoint's files."""


class CorruptCheckpointError(CheckpointError, ValueError):
    """A file is truncated, or its header does not make sense."""


class UnreadableFileError(CheckpointError, OSError):
    """A file is there, and the system does not let it be read."""


class UnwritableFileError(PipezooError, OSError):
    """A file or folder cannot be written: permissions, a full disk, a name that is taken."""


class MissingShardError(CheckpointError, FileNotFoundError):
    """A file is not there that the index names, or another part of the same model."""


class UnsafeCheckpointError(CheckpointError, ValueError):
    """The checkpoint could run code or leave its folder: pickle weights, or a path that climbs out."""


class UnsupportedCheckpointError(CheckpointError, ValueError):
    """The checkpoint is well formed, but of a kind that pipezoo or the plugin does not read."""


class UnsupportedAdapterError(UnsupportedCheckpointError):
    """A LoRA adapter changes more than linear layers, or was trained on another model."""


class CheckpointMismatchError(CheckpointError, ValueError):
    """The checkpoint's tensors are not those the model needs.

    Attributes:
        missing: names the model needs and the checkpoint lacks.
        unexpected: names the checkpoint has and the model does not know.
        wrong_shape: `name: found -> needed` for tensors of another shape.
    """

    def __init__(
        self,
        *,
        missing: Iterable[str] = (),
        unexpected: Iterable[str] = (),
        wrong_shape: Iterable[str] = (),
    ) -> None:
        self.missing = sorted(missing)
        self.unexpected = sorted(unexpected)
        self.wrong_shape = sorted(wrong_shape)
        parts = [
            f"{label}: {_listed(names)}"
            for label, names in (
                ("missing", self.missing),
                ("left over", self.unexpected),
                ("wrong shape", self.wrong_shape),
            )
            if names
        ]
        super().__init__(
            "the checkpoint's weights do not fit its config.json",
            found="; ".join(parts),
            cure="Check that weights and config.json belong to the same model.",
        )


class InsufficientMemoryError(PipezooError, MemoryError):
    """The memory plan does not fit; the message carries the plan."""


class InsufficientPagesError(PipezooError, MemoryError):
    """A request can never fit the KV cache, or pages were asked for that are not free."""


class NonFiniteLogitsError(PipezooError, ArithmeticError):
    """The model computed NaN or infinity for a request, so that no next token can be chosen; the others go on."""


class LogitsProcessorError(PipezooError, RuntimeError):
    """A request's own logits processor failed; the cause is chained, and the other requests go on."""


class ForkedProcessError(PipezooError, RuntimeError):
    """A forked child uses its parent's model, or cannot compute because its parent had threads that it lacks."""


class ClosedPipelineError(PipezooError, RuntimeError):
    """A pipeline is used after it was closed."""


class RankLostError(PipezooError, RuntimeError):
    """One of the processes that compute a model together is gone; its pipeline cannot go on."""


class ServerUnreachableError(PipezooError, ConnectionError):
    """Nobody answers at a server's address, or the server went away in the middle of an answer."""


class ServerRefusedError(PipezooError, PermissionError):
    """A server wants an API key, or another one."""


class ServerFailedError(PipezooError, RuntimeError):
    """A server said that it has failed or has too much to do, or what no server of models says."""


class TensorMismatchError(PipezooError, ValueError):
    """A model's module gave a layer a tensor of another shape, dtype or device than the layer computes with."""


class CacheIntegrityError(PipezooError, AssertionError):
    """The KV cache's books do not balance: a defect in pipezoo, never the user's fault."""
