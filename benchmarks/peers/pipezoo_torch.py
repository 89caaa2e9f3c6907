"""pipezoo where `pipezoo-kernels` is not installed: torch and oneDNN compute everything."""

from __future__ import annotations

from pathlib import Path

from peers import pipezoo

WEIGHTS = pipezoo.WEIGHTS


class Engine(pipezoo.Engine):
    def __init__(self, path: Path, dtype: str) -> None:
        linear = "torch" if dtype.startswith("int") else "onednn"
        super().__init__(path, dtype, attention="paged", linear=linear)
