"""Configs as keys of what is known of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["ConfigKey"]


class ConfigKey:
    """A config, equal to another one that says the same."""

    def __init__(self, config: PretrainedConfig) -> None:
        self.config = config
        self._text = json.dumps(config.to_dict(), sort_keys=True, default=str)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ConfigKey) and (type(self.config), self._text) == (type(other.config), other._text)

    def __hash__(self) -> int:
        return hash(self._text)
