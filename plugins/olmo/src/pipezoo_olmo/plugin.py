"""What this plugin serves. Imports no torch before it is chosen."""

from __future__ import annotations

from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.config import WeightsFormat
from pipezoo_core.hookspecs import hookimpl

__all__ = ["API_VERSION", "pipezoo_architectures"]

API_VERSION = 2


@hookimpl
def pipezoo_architectures() -> list[SupportedArchitecture]:
    """Returns OLMo, OLMo 2 and OLMo 3."""
    from pipezoo_olmo.config import config_from_gguf
    from pipezoo_olmo.huggingface_config import Olmo3HuggingFaceConfig, OlmoHuggingFaceConfig, olmo2_or_3
    from pipezoo_olmo.model import OlmoPipelineModel
    from pipezoo_olmo.weight_adapters import adapt_gguf, adapt_safetensors

    return [
        SupportedArchitecture(
            name=f"{model_type.capitalize()}ForCausalLM",
            model_types=(model_type,),
            pipeline_model=OlmoPipelineModel,
            huggingface_config=huggingface_config,
            weight_adapters={WeightsFormat.safetensors: adapt_safetensors, WeightsFormat.gguf: adapt_gguf},
            config_from_gguf=config_from_gguf,
        )
        for model_type, huggingface_config in (
            ("olmo", OlmoHuggingFaceConfig.from_dict),
            ("olmo2", olmo2_or_3),
            ("olmo3", Olmo3HuggingFaceConfig.from_dict),
        )
    ]
