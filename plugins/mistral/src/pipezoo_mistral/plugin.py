"""What this plugin serves. Imports no torch before it is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.config import WeightsFormat
from pipezoo_core.hookspecs import hookimpl

__all__ = ["API_VERSION", "pipezoo_architectures"]

API_VERSION = 2


@hookimpl
def pipezoo_architectures() -> list[SupportedArchitecture]:
    """Returns Mistral and Ministral 3. GGUF files of Mistral call themselves llama and are served there."""
    from pipezoo_mistral.huggingface_config import Ministral3HuggingFaceConfig, MistralHuggingFaceConfig
    from pipezoo_mistral.model import MistralPipelineModel
    from pipezoo_mistral.tokenizer import load_tokenizer
    from pipezoo_mistral.weight_adapters import adapt_safetensors

    return [
        SupportedArchitecture(
            name=name,
            model_types=(config_class.model_type,),
            pipeline_model=MistralPipelineModel,
            huggingface_config=config_class.from_dict,
            weight_adapters={WeightsFormat.safetensors: adapt_safetensors},
            probe=partial(_probe, default_window=config_class.sliding_window),
            tokenizer=load_tokenizer,
        )
        for name, config_class in (
            ("MistralForCausalLM", MistralHuggingFaceConfig),
            ("Ministral3ForCausalLM", Ministral3HuggingFaceConfig),
        )
    ]


def _probe(config: Mapping[str, Any], default_window: int | None) -> str | None:
    if config.get("num_experts") or config.get("num_local_experts"):
        return "it is a mixture of experts, which Mistral is not"
    window = config.get("sliding_window", default_window)
    if isinstance(window, int) and window < 1:
        return f"its sliding_window of {window} tokens lets a token see nothing"
    kind = "full_attention" if window is None else "sliding_attention"
    if any(layer != kind for layer in config.get("layer_types") or ()):
        return f"its layer_types are not all {kind!r}, as its sliding_window says"
    return None
