"""What this plugin serves. Imports no torch before it is chosen."""

from __future__ import annotations

from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.config import WeightsFormat
from pipezoo_core.hookspecs import hookimpl

__all__ = ["API_VERSION", "pipezoo_architectures"]

API_VERSION = 2


@hookimpl
def pipezoo_architectures() -> list[SupportedArchitecture]:
    """Returns DeepSeek-V2 and DeepSeek-V3."""
    from pipezoo_deepseek.config import config_from_gguf
    from pipezoo_deepseek.huggingface_config import DeepseekV2HuggingFaceConfig, DeepseekV3HuggingFaceConfig
    from pipezoo_deepseek.model import DeepseekPipelineModel
    from pipezoo_deepseek.weight_adapters import adapt_gguf, adapt_safetensors

    return [
        SupportedArchitecture(
            name=name,
            model_types=(config_class.model_type,),
            pipeline_model=DeepseekPipelineModel,
            huggingface_config=config_class.from_dict,
            weight_adapters={WeightsFormat.safetensors: adapt_safetensors, WeightsFormat.gguf: adapt_gguf},
            config_from_gguf=config_from_gguf,
        )
        for name, config_class in (
            ("DeepseekV2ForCausalLM", DeepseekV2HuggingFaceConfig),
            ("DeepseekV3ForCausalLM", DeepseekV3HuggingFaceConfig),
        )
    ]
