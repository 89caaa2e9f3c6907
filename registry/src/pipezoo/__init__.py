"""pipezoo: load any language model whose plugin is installed.

    import pipezoo

    llm = pipezoo.load("org/model")

`pipezoo.registry` has what else can be asked of models and plugins. Importing pipezoo imports neither torch nor any
plugin: the names below are looked up when they are first used.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from pipezoo import registry
from pipezoo.registry import load

if TYPE_CHECKING:
    from pipezoo_core.errors import PipezooError
    from pipezoo_core.request import TextGenerationOutput, TextGenerationRequest
    from pipezoo_core.sampling_params import SamplingParams

    __version__: str

__all__ = [
    "PipezooError",
    "SamplingParams",
    "TextGenerationOutput",
    "TextGenerationRequest",
    "__version__",
    "load",
    "registry",
]

_HOMES = {
    "PipezooError": "errors",
    "SamplingParams": "sampling_params",
    "TextGenerationOutput": "request",
    "TextGenerationRequest": "request",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("pipezoo")
    if name not in _HOMES:
        raise AttributeError(f"module 'pipezoo' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pipezoo_core.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
