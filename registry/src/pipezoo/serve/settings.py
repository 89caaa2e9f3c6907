"""What is asked of a server, checked before anything is loaded."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from pipezoo_core.errors import InvalidSettingError
from pipezoo_core.settings import Settings

__all__ = ["APIKeyTuple", "ServeSettings"]

_Name = Annotated[str, Field(min_length=1, max_length=256)]
_KEY = re.compile(r"[!-~]{8,1024}")


def _checked_keys(keys: object) -> tuple[str, ...]:
    found: list[object] = [*keys] if isinstance(keys, list | tuple) else [None]
    texts = tuple(key for key in found if isinstance(key, str) and _KEY.fullmatch(key))
    if len(texts) < len(found):
        raise InvalidSettingError(
            "setting 'api_keys' is not valid",
            found=f"{len(found) - len(texts)} that may not be a key",
            allowed="a list of texts, each 8 to 1024 characters of ASCII without spaces",
            cure="`openssl rand -hex 32` makes one.",
        )
    return texts


def _checked_endpoint(endpoint: str) -> str:
    match = re.fullmatch(r"ipc://.+|tcp://.+:([0-9]{1,5})", endpoint)
    if match is None or (match[1] is not None and not 0 < int(match[1]) < 65536):  # more would be counted from 0 again
        raise InvalidSettingError(
            "an address for KV events is not valid",
            found=endpoint,
            allowed="tcp://HOST:PORT, such as tcp://127.0.0.1:5557, tcp://*:5557 or tcp://[::1]:5557, or ipc://PATH",
        )
    return endpoint


_Endpoint = Annotated[str, AfterValidator(_checked_endpoint)]

APIKeyTuple = Annotated[tuple[str, ...], BeforeValidator(_checked_keys), Field(repr=False)]
"""What clients have to have one of. No error shows a key."""


class ServeSettings(Settings):
    """How a server serves; how the model is loaded is `LoadSettings`' business.

    Attributes:
        host: the address to listen at.
        port: likewise; 0 takes a free one.
        served_model_names: the names by which clients may ask for the model, the first of them in answers; none takes
            the model's own.
        max_queue: most answers that wait beside a full batch; further requests are refused, with status 429.
        api_keys: what clients have to have one of; none lets everybody in.
        cors_origins: the web pages that may ask from a browser, `*` for all; none are let in.
        shutdown_timeout: seconds that a server which is told to end gives to requests that run.
        on_engine_death: whether another engine takes the place of one that died, or the server ends.
        enable_adapters: whether clients may load and unload LoRA adapters.
        max_body_size: most bytes of a request's body.
        metrics_prefix: what the names at `/metrics` begin with.
        otlp_traces_endpoint: where spans are sent, by OTLP over HTTP; none are made without one.
        kv_events_endpoint: the address of ZeroMQ at which KV events are published; none are without one. At `*`,
            `localhost`, a number of this machine's, or `ipc://` the server listens; to any other host it connects.
        kv_events_replay_endpoint: the address at which it gives out past ones again.
        kv_events_topic: what they are published under.
    """

    model_config = ConfigDict(hide_input_in_errors=True)  # of pydantic's, which would show keys

    elsewhere: ClassVar[dict[str, str]] = {"served_model_name": "`served_model_names`"}

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    served_model_names: tuple[_Name, ...] = ()
    max_queue: Annotated[int, Field(ge=0, le=2**20)] = 1024
    api_keys: APIKeyTuple = ()
    cors_origins: tuple[str, ...] = ()
    shutdown_timeout: Annotated[float, Field(ge=0, le=86400)] = 30.0
    on_engine_death: Literal["restart", "exit"] = "restart"
    enable_adapters: bool = False
    max_body_size: Annotated[int, Field(ge=1, le=2**30)] = 2**24
    metrics_prefix: Annotated[str, Field(pattern=r"^[a-zA-Z_:][a-zA-Z0-9_:]{0,63}$")] = "vllm:"
    otlp_traces_endpoint: Annotated[str | None, Field(pattern=r"^https?://")] = None
    kv_events_endpoint: _Endpoint | None = None
    kv_events_replay_endpoint: _Endpoint | None = None
    kv_events_topic: Annotated[str, Field(max_length=1024)] = ""

    @model_validator(mode="after")
    def _check_kv_events(self) -> Self:
        if self.kv_events_endpoint is None and (self.kv_events_replay_endpoint is not None or self.kv_events_topic):
            raise InvalidSettingError(
                "there are no KV events to replay or to name",
                found="kv_events_replay_endpoint or kv_events_topic without kv_events_endpoint",
                cure="Give --kv-events-endpoint, or neither.",
            )
        return self
