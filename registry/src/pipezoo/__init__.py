"""pipezoo: load any language model whose plugin is installed.

`from pipezoo import registry`, then `registry.load("org/model")`.
"""

from pipezoo import registry

__all__ = ["registry"]
