"""pipezoo with transformers' own model class, as a user gets it for a type that no plugin serves natively."""

from __future__ import annotations

from pathlib import Path

from peers import pipezoo

WEIGHTS = {"float32": "safetensors", "bfloat16": "safetensors"}


class Engine(pipezoo.Engine):
    def __init__(self, path: Path, dtype: str) -> None:
        super().__init__(path, dtype, plugin="pipezoo-transformers")
