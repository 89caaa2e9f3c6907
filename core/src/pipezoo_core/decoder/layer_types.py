"""The kinds of a model's layers, by the names that transformers' configs have for them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pipezoo_core.errors import UnsupportedModelError

__all__ = ["known_layer_types"]


def known_layer_types(layer_types: Sequence[str], known: Collection[str]) -> tuple[str, ...]:
    """Returns a config's `layer_types`, one for each layer: every `PretrainedConfig` sees to that.

    Raises:
        UnsupportedModelError: one of them is not among the known ones.
    """
    unknown = {*layer_types} - {*known}
    if unknown:
        raise UnsupportedModelError(
            "the config's layer_types are not what its layers can be", found=sorted(unknown), allowed=[*known]
        )
    return tuple(layer_types)
