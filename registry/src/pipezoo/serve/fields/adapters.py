"""What the endpoints of LoRA adapters take."""

from __future__ import annotations

from pydantic import Field

from pipezoo.serve.fields.body import Body

__all__ = ["LoadAdapterBody", "UnloadAdapterBody"]


class LoadAdapterBody(Body):
    """An adapter to load."""

    lora_name: str = Field(min_length=1, max_length=256, pattern=r"^[^=\s]+$", description="What requests call it.")
    lora_path: str = Field(min_length=1, max_length=4096, description="A folder that PEFT saved, or a Hub id.")


class UnloadAdapterBody(Body):
    """An adapter to forget."""

    lora_name: str = Field(min_length=1, max_length=256)
