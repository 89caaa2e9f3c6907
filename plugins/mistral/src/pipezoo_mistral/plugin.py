"""What this plugin serves. Imports no torch before it is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.config import WeightsFormat
from pipezoo_core.hookspecs import hookimpl

__all__ = ["API_VERSION", "pipezoo_architectures"]

API_VERSION = 2


@hookimpl
def pipezoo_architectures() -> list[SupportedArchitecture]:
    """Returns Mistral, Ministral 3 and Mixtral.

    GGUF files of these call themselves llama; those with experts are served here, the others by the llama plugin.
    """
    from pipezoo_mistral.config import config_from_gguf
    from pipezoo_mistral.huggingface_config import (
        Ministral3HuggingFaceConfig,
        MistralHuggingFaceConfig,
        MixtralHuggingFaceConfig,
    )
    from pipezoo_mistral.model import MistralPipelineModel
    from pipezoo_mistral.tokenizer import load_tokenizer
    from pipezoo_mistral.weight_adapters import adapt_gguf, adapt_mixtral, adapt_safetensors

    mistral = SupportedArchitecture(
        name="MistralForCausalLM",
        model_types=("mistral",),
        pipeline_model=MistralPipelineModel,
        huggingface_config=MistralHuggingFaceConfig.from_dict,
        weight_adapters={WeightsFormat.safetensors: adapt_safetensors},
        probe=partial(_probe, default_window=MistralHuggingFaceConfig.sliding_window),
        tokenizer=load_tokenizer,
    )
    ministral3 = replace(
        mistral,
        name="Ministral3ForCausalLM",
        model_types=("ministral3",),
        huggingface_config=Ministral3HuggingFaceConfig.from_dict,
        probe=partial(_probe, default_window=None),
    )
    mixtral = replace(
        mistral,
        name="MixtralForCausalLM",
        model_types=("mixtral",),
        huggingface_config=MixtralHuggingFaceConfig.from_dict,
        weight_adapters={WeightsFormat.safetensors: adapt_mixtral, WeightsFormat.gguf: adapt_gguf},
        config_from_gguf=config_from_gguf,
        probe=partial(_why_not_windowed, default_window=None),
    )
    return [mistral, ministral3, mixtral]


def _probe(config: Mapping[str, Any], default_window: int | None) -> str | None:
    if config.get("num_experts") or config.get("num_local_experts"):
        return "it is a mixture of experts, which Mistral is not"
    return _why_not_windowed(config, default_window)


def _why_not_windowed(config: Mapping[str, Any], default_window: int | None) -> str | None:
    window = config.get("sliding_window", default_window)
    if isinstance(window, int) and window < 1:
        return f"its sliding_window of {window} tokens lets a token see nothing"
    kind = "full_attention" if window is None else "sliding_attention"
    if any(layer != kind for layer in config.get("layer_types") or ()):
        return f"its layer_types are not all {kind!r}, as its sliding_window says"
    return None
