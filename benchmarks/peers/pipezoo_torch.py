"""pipezoo where `pipezoo-kernels` is not installed: torch and oneDNN compute everything."""

from __future__ import annotations

import sys
from pathlib import Path

from peers import pipezoo

WEIGHTS = pipezoo.WEIGHTS


class Engine(pipezoo.Engine):
    def __init__(self, path: Path, dtype: str) -> None:
        sys.modules["pipezoo_kernels"] = None  # type: ignore[assignment]  # what is None there cannot be imported
        super().__init__(path, dtype)
