"""What this plugin serves. Imports no torch before it is chosen."""

from __future__ import annotations

from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.config import WeightsFormat
from pipezoo_core.hookspecs import hookimpl

__all__ = ["API_VERSION", "pipezoo_architectures"]

API_VERSION = 2


@hookimpl
def pipezoo_architectures() -> list[SupportedArchitecture]:
    """Returns gpt-oss."""
    from pipezoo_gpt_oss.config import config_from_gguf
    from pipezoo_gpt_oss.huggingface_config import GptOssHuggingFaceConfig
    from pipezoo_gpt_oss.model import GptOssPipelineModel
    from pipezoo_gpt_oss.weight_adapters import adapt_gguf, adapt_safetensors

    return [
        SupportedArchitecture(
            name="GptOssForCausalLM",
            model_types=("gpt_oss", "gpt-oss"),
            pipeline_model=GptOssPipelineModel,
            huggingface_config=GptOssHuggingFaceConfig.from_dict,
            weight_adapters={WeightsFormat.safetensors: adapt_safetensors, WeightsFormat.gguf: adapt_gguf},
            config_from_gguf=config_from_gguf,
        )
    ]
