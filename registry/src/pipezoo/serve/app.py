"""The application: all routes, and what is in front of them."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from pipezoo.serve.http.api_keys import APIKeys
from pipezoo.serve.http.body_limits import BodyLimits
from pipezoo.serve.http.failure import FailureBody
from pipezoo.serve.http.head_requests import HeadRequests
from pipezoo.serve.http.hosts import LocalHosts, is_loopback
from pipezoo.serve.http.request_ids import RequestIDs
from pipezoo.serve.http.watched import failure_response
from pipezoo.serve.page import page_router
from pipezoo.serve.routes import adapters, chat, completions, metrics, models, responses, state, tokens
from pipezoo.serve.service import Service
from pipezoo.serve.settings import ServeSettings
from pipezoo_core.errors import PipezooError

__all__ = ["build_app"]

_ROUTERS = (
    state.router,
    models.router,
    completions.router,
    chat.router,
    tokens.router,
    metrics.router,
    responses.router,
    page_router(),
)
_FAILURES: dict[int | str, dict[str, Any]] = {"4XX": {"model": FailureBody}, "5XX": {"model": FailureBody}}


def build_app(service: Service) -> FastAPI:
    """Returns the application, which speaks ASGI.

    Args:
        service: answers.
    """
    app = FastAPI(
        title="pipezoo",
        version=importlib.metadata.version("pipezoo"),
        docs_url=None,  # they would come from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        responses=_FAILURES,
    )
    app.state.service = service
    for router in (*_ROUTERS, adapters.router) if service.settings.enable_adapters else _ROUTERS:
        app.include_router(router)
    for kind in (PipezooError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _fail)
    _add_gates(app, service.settings)
    return app


def _add_gates(app: FastAPI, settings: ServeSettings) -> None:
    """Puts what every request passes in front of the routes; the last one is the first to be passed."""
    app.add_middleware(HeadRequests)
    app.add_middleware(BodyLimits, max_size=settings.max_body_size)
    if settings.api_keys:
        app.add_middleware(APIKeys, keys=settings.api_keys)
    elif is_loopback(settings.host):
        app.add_middleware(LocalHosts)
    app.add_middleware(RequestIDs)
    if settings.cors_origins:  # before the keys: a browser asks whether it may ask without one
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],  # OpenAI's client sends some of its own
            expose_headers=["X-Request-Id"],
        )


async def _fail(_: Request, error: Exception) -> Response:
    return failure_response(error)
