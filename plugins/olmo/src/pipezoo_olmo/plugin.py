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
    from pipezoo_olmo.huggingface_config import Olmo2HuggingFaceConfig, Olmo3HuggingFaceConfig, OlmoHuggingFaceConfig
    from pipezoo_olmo.model import OlmoPipelineModel
    from pipezoo_olmo.weight_adapters import adapt_safetensors

    return [
        SupportedArchitecture(
            name=f"{config_class.model_type.capitalize()}ForCausalLM",
            model_types=(config_class.model_type,),
            pipeline_model=OlmoPipelineModel,
            huggingface_config=config_class.from_dict,
            weight_adapters={WeightsFormat.safetensors: adapt_safetensors},
        )
        for config_class in (OlmoHuggingFaceConfig, Olmo2HuggingFaceConfig, Olmo3HuggingFaceConfig)
    ]
