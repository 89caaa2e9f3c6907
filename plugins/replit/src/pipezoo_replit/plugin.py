"""What this plugin serves. Imports no torch before it is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.config import WeightsFormat
from pipezoo_core.hookspecs import hookimpl

__all__ = ["API_VERSION", "pipezoo_architectures"]

API_VERSION = 1

_NAMES = ("MPTForCausalLM", "MptForCausalLM")  # of the original code, and of transformers


@hookimpl
def pipezoo_architectures() -> list[SupportedArchitecture]:
    """Returns MPT under both of its names."""
    from transformers import MptConfig

    from pipezoo_replit.model import MptPipelineModel
    from pipezoo_replit.weight_adapters import adapt_safetensors

    return [
        SupportedArchitecture(
            name=name,
            model_types=("mpt",),
            pipeline_model=MptPipelineModel,
            huggingface_config=MptConfig.from_dict,
            weight_adapters={WeightsFormat.safetensors: adapt_safetensors},
            probe=_probe,
        )
        for name in _NAMES
    ]


_NEEDED: dict[str, tuple[object, str]] = {
    "no_bias": (True, "biases"),
    "tie_word_embeddings": (True, "a head of its own"),
    "expansion_ratio": (4, "another expansion ratio than 4"),
    "logit_scale": (None, "a logit scale"),
    "embedding_fraction": (1.0, "an embedding fraction"),
}
_NEEDED_OF_ATTENTION: dict[str, tuple[object, str]] = {
    "alibi": (True, "learned positions instead of ALiBi"),
    "attn_type": ("multihead_attention", "another attention than multi-head"),
    "kv_n_heads": (None, "grouped key/value heads"),
    "qk_ln": (False, "normalized queries and keys"),
    "prefix_lm": (False, "a bidirectional prefix"),
    "attn_uses_sequence_id": (False, "sequence ids in attention"),
}


def _probe(config: Mapping[str, Any]) -> str | None:
    """Names what a config asks for and this plugin does not compute."""
    attention = config.get("attn_config")
    parts = [(config, _NEEDED), (attention if isinstance(attention, Mapping) else {}, _NEEDED_OF_ATTENTION)]
    asked = [
        what
        for part, needed in parts
        for name, (value, what) in needed.items()
        if part.get(name, value) not in (value, None)
    ]
    return f"it has {', '.join(asked)}, which this plugin does not compute" if asked else None
