"""The adapter that a request names. Knows no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipezoo_core.context import TextContext
from pipezoo_core.errors import AdapterNotFoundError

if TYPE_CHECKING:
    from pipezoo_core.lora import LoRAManager

__all__ = ["hold_adapter"]


def hold_adapter(manager: LoRAManager | None, context: TextContext) -> None:
    """Notes that a request uses the adapter it names, if it names one; None is the manager of a model without any.

    Raises:
        AdapterNotFoundError: no adapter of this name is loaded.
    """
    if context.lora is None:
        return
    if manager is None:
        raise AdapterNotFoundError(
            f"no adapter {context.lora!r} is loaded, because the model was loaded without room for any",
            cure="Load the model with lora_paths or max_num_loras.",
        )
    manager.hold(context)
