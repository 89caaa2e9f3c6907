"""How the server is: `/health`, `/ready`, `/version`."""

from __future__ import annotations

import importlib.metadata

from fastapi import APIRouter
from starlette.responses import Response
from typing_extensions import TypedDict

from pipezoo.serve.engine.client import EngineState
from pipezoo.serve.http.watched import json_response
from pipezoo.serve.service import Served

__all__ = ["router"]

router = APIRouter(tags=["state"])


class State(TypedDict):
    """What the engine does: `loading`, `ready` or `dead`; `closing` where the server is about to end."""

    status: str


class Version(TypedDict):
    """What is installed."""

    version: str


@router.get("/health", responses={200: {"model": State}, 503: {"model": State}})
async def health(service: Served) -> Response:
    """Say whether the server works: 503 where its engine is dead. Needs no API key, as `/ready`."""
    status = service.engine.state
    return json_response({"status": status}, 503 if status is EngineState.DEAD else 200)


@router.get("/ready", responses={200: {"model": State}, 503: {"model": State}})
async def ready(service: Served) -> Response:
    """Say whether requests are taken: 503 while the model is being loaded, and where the server is about to end."""
    status = "closing" if service.is_closing else service.engine.state
    return json_response({"status": status}, 200 if service.is_ready else 503)


@router.get("/version")
async def version() -> Version:
    """Say which version of pipezoo this is."""
    return {"version": importlib.metadata.version("pipezoo")}
