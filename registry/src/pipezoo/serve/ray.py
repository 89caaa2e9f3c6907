"""The server as an application of Ray Serve: a gateway, and replicas of the model behind it, on one machine or many.

    serve run pipezoo.serve.ray:build_app model=org/model max_replicas=4

Requests whose prompts begin alike go to the same replica, whose prefix cache has what they share. Where that one has as
many requests as it takes, the next one gets them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

import httpx
from fastapi import Request
from pydantic import ConfigDict, Field, model_validator
from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from starlette.responses import Response, StreamingResponse

from pipezoo.serve.errors import BodyTooLargeError, EngineLostError
from pipezoo.serve.http.watched import failure_response
from pipezoo.serve.prompt_prefix import prefix_of
from pipezoo.serve.run import bound, new_server
from pipezoo.serve.settings import APIKeyTuple, ServeSettings
from pipezoo_core.errors import InvalidSettingError
from pipezoo_core.settings import Settings

__all__ = ["RaySettings", "build_app"]

_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
_NOT_SENT_ON = {b"connection", b"content-length", b"host", b"keep-alive", b"transfer-encoding", b"upgrade"}
_NOT_SENT_BACK = _NOT_SENT_ON | {b"date", b"server", b"x-request-id"}  # Ray has its own
_NO_LIMITS = httpx.Limits(max_connections=None)


class RaySettings(Settings):
    """What is asked of Ray, for each replica and for all of them.

    Attributes:
        model: as for `registry.load`, and found on every machine.
        load_settings: likewise, for instance `{"dtype": "bfloat16"}`.
        served_model_names: the names by which clients may ask for the model; none takes the model's own.
        api_keys: what clients have to have one of; none lets everybody in.
        min_replicas: that are always there.
        max_replicas: that there may be.
        requests_per_replica: that run in each replica, on average, before Ray starts another one.
        cpus_per_replica: that each one has.
        gpus_per_replica: likewise.
    """

    model_config = ConfigDict(hide_input_in_errors=True)  # of pydantic's, which would show keys

    model: str
    load_settings: dict[str, Any] = Field(default_factory=dict)
    served_model_names: tuple[str, ...] = ()
    api_keys: APIKeyTuple = ()
    min_replicas: Annotated[int, Field(ge=1)] = 1
    max_replicas: Annotated[int, Field(ge=1)] = 1
    requests_per_replica: Annotated[int, Field(ge=1)] = 32
    cpus_per_replica: Annotated[float, Field(gt=0)] = 1
    gpus_per_replica: Annotated[float, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _has_room(self) -> RaySettings:
        if self.min_replicas > self.max_replicas:
            raise InvalidSettingError(
                "there cannot be as many replicas as there always are",
                found=f"min_replicas {self.min_replicas}, max_replicas {self.max_replicas}",
                cure="Raise max_replicas.",
            )
        return self


def build_app(settings: dict[str, Any]) -> serve.Application:
    """Returns the application for `serve run`, `serve deploy` and `ray.serve.run`.

    Args:
        settings: those of `RaySettings`.

    Raises:
        InvalidSettingError: a setting is unknown or not valid.
    """
    asked = RaySettings(**settings)
    replicas = serve.deployment(
        name="Replica",
        max_ongoing_requests=4 * asked.requests_per_replica,
        ray_actor_options={"num_cpus": asked.cpus_per_replica, "num_gpus": asked.gpus_per_replica},
        autoscaling_config=AutoscalingConfig(
            min_replicas=asked.min_replicas,
            max_replicas=asked.max_replicas,
            target_ongoing_requests=asked.requests_per_replica,
        ),
        request_router_config=RequestRouterConfig(request_router_class=_ROUTER),  # type: ignore[arg-type]  # a name will do
    )(Replica)
    gateway = serve.deployment(name="Gateway", max_ongoing_requests=10_000, ray_actor_options={"num_cpus": 0})(Gateway)
    return gateway.bind(replicas.bind(asked.model_dump()))


@dataclass(frozen=True, slots=True)
class ForwardedRequest:
    """A request as the gateway sends it to a replica: whole, because only its body says where it belongs."""

    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """What an answer begins with; pieces of its body follow."""

    status: int
    headers: list[tuple[bytes, bytes]]


class Gateway:
    """Sends each request to the replica that has computed its prefix before, and its answer back as it comes.

    Args:
        replicas: of the model.
    """

    def __init__(self, replicas: DeploymentHandle[Any]) -> None:
        self._replicas = replicas.options(stream=True, method_name="answer")
        self._max_body_size = ServeSettings().max_body_size

    async def __call__(self, request: Request) -> Response:
        """Answers a request of whatever address and method."""
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > self._max_body_size:
                return failure_response(
                    BodyTooLargeError(
                        "the body of the request is too large", allowed=f"at most {self._max_body_size:,} bytes"
                    )
                )
        prefix = prefix_of(bytes(body))
        replicas = self._replicas if prefix is None else self._replicas.options(session_id=prefix)
        url = request.scope
        forwarded = ForwardedRequest(
            request.method, url["path"], url["query_string"], list(url["headers"]), bytes(body)
        )
        pieces: Any = replicas.remote(forwarded)  # a generator, of a head and bytes
        head = await anext(pieces)
        answer = StreamingResponse(_following(pieces), status_code=head.status)
        answer.raw_headers = head.headers
        return answer


async def _following(pieces: Any) -> AsyncIterator[bytes]:
    """Yields the body of an answer, and cancels it where nobody reads on."""
    try:
        async for piece in pieces:
            yield piece
    finally:
        pieces.cancel()


class Replica:
    """One model with its server, which listens inside the machine alone, in a process of Ray's.

    Args:
        settings: those of `RaySettings`.

    Raises:
        What `registry.load` does.
    """

    async def __init__(self, settings: dict[str, Any]) -> None:  # type: ignore[misc]  # Ray awaits it
        asked = RaySettings(**settings)
        names, keys = asked.served_model_names, asked.api_keys
        how = ServeSettings(port=0, served_model_names=names, api_keys=keys, on_engine_death="exit")
        address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        server = await asyncio.to_thread(new_server, asked.model, asked.load_settings, how, on_ready=address.set_result)
        self._server = server
        self._running = asyncio.ensure_future(server.run(bound(how), handles_signals=False))
        waits: set[asyncio.Future[Any]] = {address, self._running}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        self.check_health()
        self._client = httpx.AsyncClient(base_url=address.result(), timeout=None, limits=_NO_LIMITS)

    async def answer(self, request: ForwardedRequest) -> AsyncIterator[Head | bytes]:
        """Yields the head of the answer, and then its body, piece by piece; it ends early where nobody reads on."""
        headers = [(name, value) for name, value in request.headers if name not in _NOT_SENT_ON]
        url = httpx.URL(path=request.path, query=request.query)
        async with self._client.stream(request.method, url, headers=headers, content=request.body) as response:
            raw = [(name.lower(), value) for name, value in response.headers.raw]
            yield Head(response.status_code, [header for header in raw if header[0] not in _NOT_SENT_BACK])
            async for piece in response.aiter_raw():
                yield piece

    def check_health(self) -> None:
        """Asked by Ray, which puts another replica in the place of one that fails it.

        Raises:
            EngineLostError: the engine died.
            What `registry.load` does: it was not loaded.
        """
        if self._running.done():
            self._running.result()
            raise EngineLostError("the server has ended")

    async def __del__(self) -> None:
        """Ends the server; Ray calls it when no request runs any more."""
        self._server.end()
        with suppress(Exception):  # which the health check has told of
            await self._running
