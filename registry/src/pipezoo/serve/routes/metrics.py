"""`/metrics`."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.responses import Response

from pipezoo.serve.service import Served

__all__ = ["router"]

router = APIRouter(tags=["state"])


@router.get("/metrics", response_class=Response)
async def metrics(service: Served) -> Response:
    """Show counts and times, in Prometheus' text format."""
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)
