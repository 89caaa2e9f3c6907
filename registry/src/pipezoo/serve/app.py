"""The application: all routes, and what is in front of them."""

from __future__ import annotations

import importlib.metadata

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from pipezoo.serve.http.watched import failure_response
from pipezoo.serve.routes import chat, completions, models, state
from pipezoo.serve.service import Service
from pipezoo_core.errors import PipezooError

__all__ = ["build_app"]

_ROUTERS = (state.router, models.router, completions.router, chat.router)


def build_app(service: Service) -> FastAPI:
    """Returns the application, which speaks ASGI.

    Args:
        service: answers.
    """
    app = FastAPI(title="pipezoo", version=importlib.metadata.version("pipezoo"), docs_url=None, redoc_url=None)
    app.state.service = service
    for router in _ROUTERS:
        app.include_router(router)
    for kind in (PipezooError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _fail)
    return app


async def _fail(_: Request, error: Exception) -> Response:
    return failure_response(error)
