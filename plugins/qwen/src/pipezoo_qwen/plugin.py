"""What this plugin serves. Imports no torch before it is chosen."""

from __future__ import annotations

from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.config import WeightsFormat
from pipezoo_core.hookspecs import hookimpl

__all__ = ["API_VERSION", "pipezoo_architectures"]

API_VERSION = 2


@hookimpl
def pipezoo_architectures() -> list[SupportedArchitecture]:
    """Returns Qwen2 and Qwen3, and their mixtures of experts."""
    from pipezoo_qwen.config import config_from_gguf
    from pipezoo_qwen.huggingface_config import (
        Qwen2HuggingFaceConfig,
        Qwen2MoeHuggingFaceConfig,
        Qwen3HuggingFaceConfig,
        Qwen3MoeHuggingFaceConfig,
    )
    from pipezoo_qwen.model import QwenPipelineModel
    from pipezoo_qwen.weight_adapters import adapt_gguf, adapt_safetensors

    return [
        SupportedArchitecture(
            name=f"{family}ForCausalLM",
            model_types=(config_class.model_type,),
            pipeline_model=QwenPipelineModel,
            huggingface_config=config_class.from_dict,
            weight_adapters={WeightsFormat.safetensors: adapt_safetensors, WeightsFormat.gguf: adapt_gguf},
            config_from_gguf=config_from_gguf,
        )
        for family, config_class in (
            ("Qwen2", Qwen2HuggingFaceConfig),
            ("Qwen3", Qwen3HuggingFaceConfig),
            ("Qwen2Moe", Qwen2MoeHuggingFaceConfig),
            ("Qwen3Moe", Qwen3MoeHuggingFaceConfig),
        )
    ]
