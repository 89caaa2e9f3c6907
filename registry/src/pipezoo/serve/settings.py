"""What is asked of a server, checked before anything is loaded."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipezoo_core.settings import Settings

__all__ = ["ServeSettings"]

_Name = Annotated[str, Field(min_length=1, max_length=256)]


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
    """

    elsewhere: ClassVar[dict[str, str]] = {"served_model_name": "`served_model_names`"}

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    served_model_names: tuple[_Name, ...] = ()
    max_queue: Annotated[int, Field(ge=0, le=2**20)] = 1024
    api_keys: Annotated[tuple[str, ...], Field(repr=False)] = ()
    cors_origins: tuple[str, ...] = ()
    shutdown_timeout: Annotated[float, Field(ge=0, le=86400)] = 30.0
    on_engine_death: Literal["restart", "exit"] = "restart"
    enable_adapters: bool = False
    max_body_size: Annotated[int, Field(ge=1, le=2**30)] = 2**24
    metrics_prefix: Annotated[str, Field(pattern=r"^[a-zA-Z_:][a-zA-Z0-9_:]{0,63}$")] = "vllm:"
    otlp_traces_endpoint: Annotated[str | None, Field(pattern=r"^https?://")] = None
