"""`/v1/models`."""

from __future__ import annotations

from fastapi import APIRouter
from typing_extensions import TypedDict

from pipezoo.serve.errors import UnknownModelError
from pipezoo.serve.service import Served, Service
from pipezoo_core.errors import shown

__all__ = ["router"]

router = APIRouter(tags=["models"])


class ModelCard(TypedDict):
    """A name that requests may have as their `model`: the model's own, or an adapter's, whose parent the model is."""

    id: str
    object: str
    created: int
    owned_by: str
    parent: str | None
    max_model_len: int


class ModelList(TypedDict):
    """All that requests may name."""

    object: str
    data: list[ModelCard]


@router.get("/v1/models")
async def list_models(service: Served) -> ModelList:
    """List the model's names and the loaded adapters."""
    return {"object": "list", "data": _cards(service)}


@router.get("/v1/models/{name:path}")
async def show_model(name: str, service: Served) -> ModelCard:
    """Show one of them."""
    for card in _cards(service):
        if card["id"] == name:
            return card
    raise UnknownModelError("there is no such model here", found=shown(name))


def _cards(service: Service) -> list[ModelCard]:
    model = service.ready_model()
    parents = [*((name, None) for name in model.names), *((name, model.names[0]) for name in service.engine.adapters)]
    return [
        {
            "id": name,
            "object": "model",
            "created": model.created,
            "owned_by": "pipezoo",
            "parent": parent,
            "max_model_len": model.tokenizer.max_length,
        }
        for name, parent in parents
    ]
