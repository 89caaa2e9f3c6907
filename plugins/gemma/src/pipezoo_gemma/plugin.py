"""What this plugin serves. Imports no torch before it is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.config import WeightsFormat
from pipezoo_core.hookspecs import hookimpl

__all__ = ["API_VERSION", "pipezoo_architectures"]

API_VERSION = 2


@hookimpl
def pipezoo_architectures() -> list[SupportedArchitecture]:
    """Returns Gemma, Gemma 2, and Gemma 3, of which it reads the text part."""
    from pipezoo_gemma.config import config_from_gguf
    from pipezoo_gemma.huggingface_config import (
        Gemma2HuggingFaceConfig,
        Gemma3TextHuggingFaceConfig,
        GemmaHuggingFaceConfig,
        text_part,
    )
    from pipezoo_gemma.model import GemmaPipelineModel
    from pipezoo_gemma.weight_adapters import adapt_gguf, adapt_safetensors, adapt_text_part

    return [
        SupportedArchitecture(
            name=name,
            model_types=(model_type,),
            pipeline_model=GemmaPipelineModel,
            huggingface_config=huggingface_config,
            weight_adapters={WeightsFormat.safetensors: adapt, WeightsFormat.gguf: adapt_gguf},
            config_from_gguf=config_from_gguf,
            probe=_probe,
        )
        for name, model_type, huggingface_config, adapt in (
            ("GemmaForCausalLM", "gemma", GemmaHuggingFaceConfig.from_dict, adapt_safetensors),
            ("Gemma2ForCausalLM", "gemma2", Gemma2HuggingFaceConfig.from_dict, adapt_safetensors),
            ("Gemma3ForCausalLM", "gemma3_text", Gemma3TextHuggingFaceConfig.from_dict, adapt_safetensors),
            ("Gemma3ForConditionalGeneration", "gemma3", text_part, adapt_text_part),
        )
    ]


def _probe(config: Mapping[str, Any]) -> str | None:
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        if part.get("use_bidirectional_attention"):
            return "its tokens see later ones (use_bidirectional_attention), so it generates no text"
    return None
