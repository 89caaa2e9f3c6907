"""Loading and unloading LoRA adapters; only where the server was started with `--enable-adapters`."""

from __future__ import annotations

from fastapi import APIRouter
from typing_extensions import TypedDict

from pipezoo.serve.errors import FieldError
from pipezoo.serve.fields.adapters import LoadAdapterBody, UnloadAdapterBody
from pipezoo.serve.http.json_body import JSONRoute
from pipezoo.serve.service import Served

__all__ = ["router"]

router = APIRouter(route_class=JSONRoute, tags=["adapters"])


class Adapters(TypedDict):
    """The names of the adapters that are loaded now."""

    adapters: list[str]


@router.post("/v1/load_lora_adapter")
async def load_adapter(body: LoadAdapterBody, service: Served) -> Adapters:
    """Load an adapter, which requests name as their `model`."""
    if body.lora_name in service.ready_model().names:
        raise FieldError("lora_name", "the model itself has this name", found=body.lora_name)
    await service.engine.add_adapter(body.lora_name, body.lora_path)
    return {"adapters": service.engine.adapters}


@router.post("/v1/unload_lora_adapter")
async def unload_adapter(body: UnloadAdapterBody, service: Served) -> Adapters:
    """Forget an adapter that no request uses."""
    service.ready_model()
    await service.engine.remove_adapter(body.lora_name)
    return {"adapters": service.engine.adapters}
