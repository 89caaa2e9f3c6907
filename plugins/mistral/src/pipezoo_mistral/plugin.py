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
    """Returns Mistral, Ministral 3, the text part of a Mistral 3 that also sees, and Mixtral.

    GGUF files of these call themselves llama; those with experts are served here, the others by the llama plugin.
    """
    from pipezoo_mistral.config import config_from_gguf
    from pipezoo_mistral.huggingface_config import (
        Ministral3HuggingFaceConfig,
        MistralHuggingFaceConfig,
        MixtralHuggingFaceConfig,
        text_part,
    )
    from pipezoo_mistral.model import MistralPipelineModel
    from pipezoo_mistral.tokenizer import load_tokenizer
    from pipezoo_mistral.weight_adapters import adapt_gguf, adapt_mixtral, adapt_safetensors, adapt_text_part

    mistral = SupportedArchitecture(
        name="MistralForCausalLM",
        model_types=("mistral",),
        pipeline_model=MistralPipelineModel,
        huggingface_config=MistralHuggingFaceConfig.from_dict,
        weight_adapters={WeightsFormat.safetensors: adapt_safetensors},
        probe=partial(_probe_mistral, default_window=MistralHuggingFaceConfig.sliding_window),
        tokenizer=load_tokenizer,
    )
    ministral3 = replace(
        mistral,
        name="Ministral3ForCausalLM",
        model_types=("ministral3",),
        huggingface_config=Ministral3HuggingFaceConfig.from_dict,
        probe=_probe_ministral3,
    )
    mistral3 = replace(
        mistral,
        name="Mistral3ForConditionalGeneration",
        model_types=("mistral3",),
        huggingface_config=text_part,
        weight_adapters={WeightsFormat.safetensors: adapt_text_part},
        probe=partial(_probe_text_part, default_window=MistralHuggingFaceConfig.sliding_window),
    )
    mixtral = replace(
        mistral,
        name="MixtralForCausalLM",
        model_types=("mixtral",),
        huggingface_config=MixtralHuggingFaceConfig.from_dict,
        weight_adapters={WeightsFormat.safetensors: adapt_mixtral, WeightsFormat.gguf: adapt_gguf},
        config_from_gguf=config_from_gguf,
        probe=_probe_mixtral,
    )
    return [mistral, ministral3, mistral3, mixtral]


def _probe_mistral(config: Mapping[str, Any], default_window: int | None) -> str | None:
    return _why_not_dense(config) or _why_no_window(config.get("sliding_window", default_window))


def _probe_ministral3(config: Mapping[str, Any]) -> str | None:
    return _why_not_dense(config) or _probe_mixtral(config)


def _probe_mixtral(config: Mapping[str, Any]) -> str | None:
    """Its layers, and those of Ministral 3, are alike in transformers, whatever the config says."""
    window = config.get("sliding_window")
    kind = "full_attention" if window is None else "sliding_attention"
    if any(layer != kind for layer in config.get("layer_types") or ()):
        return f"its layer_types are not all {kind!r}, as its sliding_window says"
    return _why_no_window(window)


def _probe_text_part(config: Mapping[str, Any], default_window: int | None) -> str | None:
    text = config.get("text_config")
    if not isinstance(text, Mapping):
        return "its text part is not described (text_config)"
    kind = text.get("model_type", "mistral")
    if kind == "mistral":
        return _probe_mistral(text, default_window)
    return _probe_ministral3(text) if kind == "ministral3" else f"its text part is a {kind!r}, which is no Mistral"


def _why_not_dense(config: Mapping[str, Any]) -> str | None:
    if config.get("num_experts") or config.get("num_local_experts"):
        return "it is a mixture of experts, which Mistral is not"
    return None


def _why_no_window(window: object) -> str | None:
    if isinstance(window, int) and window < 1:
        return f"its sliding_window of {window} tokens lets a token see nothing"
    return None
