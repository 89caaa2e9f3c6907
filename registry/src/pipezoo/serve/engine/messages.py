"""What the server's process and the engine's say to each other. MessagePack carries it, and no code travels with it."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from pipezoo_core.distributed.portable_errors import decode_error, encode_error
from pipezoo_core.request import RequestID, TextGenerationOutput

__all__ = [
    "AddAdapter",
    "Cancel",
    "Counts",
    "Done",
    "Generate",
    "Inspect",
    "Load",
    "LoadFailed",
    "Loading",
    "Ready",
    "RemoveAdapter",
    "Steps",
    "ToEngine",
    "ToServer",
    "decode_to_engine",
    "decode_to_server",
    "encode",
]


class Load(msgspec.Struct, frozen=True, tag=True):
    """Load a model; the first message of all.

    Attributes:
        model: as for `registry.load`.
        settings: likewise.
        reports_pages: whether `Steps` says which pages of the KV cache can be found.
    """

    model: str
    settings: dict[str, Any]
    reports_pages: bool = False


class Generate(msgspec.Struct, frozen=True, tag=True):
    """Answer a prompt.

    Attributes:
        request_id: no other request that runs has it.
        prompt: its tokens.
        sampling: all settings that are not ours by default.
        lora: name of the adapter; None takes the model as it is.
        arrival_time: when the client asked, by `time.monotonic`, which is the same in all processes.
    """

    request_id: RequestID
    prompt: list[int]
    sampling: dict[str, Any]
    lora: str | None
    arrival_time: float


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """End a request. No further output of it is wanted."""

    request_id: RequestID


class AddAdapter(msgspec.Struct, frozen=True, tag=True):
    """Load a LoRA adapter, `name=path`; answered by `Done` with the same number."""

    number: int
    path: str


class RemoveAdapter(msgspec.Struct, frozen=True, tag=True):
    """Forget a LoRA adapter; answered by `Done` with the same number."""

    number: int
    name: str


class Inspect(msgspec.Struct, frozen=True, tag=True):
    """Check the KV cache's books; answered by `Done` with the same number."""

    number: int


class Counts(msgspec.Struct, frozen=True):
    """What the engine counts, after a step. Those of several replicas are sums.

    Attributes:
        num_running: requests that have pages.
        num_waiting: those that have none, or none any more.
        num_pages: all pages of the KV cache.
        num_free_pages: those that no request refers to.
        num_preemptions: since the load.
        num_prefix_queries: tokens of prompts that were looked for in the prefix cache, since the load.
        num_prefix_hits: those that were there.
    """

    num_running: int
    num_waiting: int
    num_pages: int
    num_free_pages: int
    num_preemptions: int
    num_prefix_queries: int
    num_prefix_hits: int


class Loading(msgspec.Struct, frozen=True, tag=True):
    """How far the weights are: numbers that are loaded, of how many."""

    num_done: int
    num_all: int


class LoadFailed(msgspec.Struct, frozen=True, tag=True):
    """The model cannot be loaded; the process ends.

    Attributes:
        error: why.
        notes: what was added to it.
    """

    error: Exception
    notes: list[str]


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The model is loaded.

    Attributes:
        max_length: most tokens of a request, prompt and answer together.
        max_batch_size: most requests that run at the same time, in all replicas.
        page_size: tokens of a page.
        max_num_loras: most adapters that are used at the same time; 0 of a model that takes none.
        adapters: the names of those that are loaded.
        counts: before the first request.
        num_replicas: of the model.
    """

    max_length: int
    max_batch_size: int
    page_size: int
    max_num_loras: int
    adapters: list[str]
    counts: Counts
    num_replicas: int = 1


class Steps(msgspec.Struct, frozen=True, tag=True):
    """What is new since the last message of this kind.

    Attributes:
        outputs: of requests that went on.
        counts: after it.
        kv_events: of the pages of the KV cache, where somebody wants to know; one batch at most for each replica, as
            MessagePack.
    """

    outputs: list[TextGenerationOutput]
    counts: Counts
    kv_events: list[bytes] = []


class Done(msgspec.Struct, frozen=True, tag=True):
    """What came of a message with a number.

    Attributes:
        number: the message's.
        adapters: the names of those that are loaded now.
        counts: after it.
        error: why it was not done; None where it was.
    """

    number: int
    adapters: list[str]
    counts: Counts
    error: Exception | None = None


ToEngine: TypeAlias = Load | Generate | Cancel | AddAdapter | RemoveAdapter | Inspect
ToServer: TypeAlias = Loading | LoadFailed | Ready | Steps | Done


def _encode_other(value: object) -> dict[str, Any]:
    if isinstance(value, BaseException):
        return encode_error(value)
    raise NotImplementedError(type(value).__name__)  # what msgspec wants of a hook


def _decode_other(kind: type, value: Any) -> object:
    if issubclass(kind, BaseException):
        return decode_error(value)
    raise NotImplementedError(kind.__name__)  # likewise


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_other)
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine, dec_hook=_decode_other)
_to_server: msgspec.msgpack.Decoder[ToServer] = msgspec.msgpack.Decoder(ToServer, dec_hook=_decode_other)


def encode(message: ToEngine | ToServer) -> bytes:
    """Returns a message as bytes."""
    return _encoder.encode(message)


def decode_to_engine(data: bytes) -> ToEngine:
    """Returns a message of the server's process."""
    return _to_engine.decode(data)


def decode_to_server(data: bytes) -> ToServer:
    """Returns a message of the engine's process."""
    return _to_server.decode(data)
