"""What this plugin serves. Imports no torch before it is chosen."""

from __future__ import annotations

from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.config import WeightsFormat
from pipezoo_core.hookspecs import hookimpl

__all__ = ["API_VERSION", "pipezoo_architectures"]

API_VERSION = 1


@hookimpl
def pipezoo_architectures() -> list[SupportedArchitecture]:
    """Returns Mistral. GGUF files of Mistral call themselves llama and are served there."""
    from transformers import MistralConfig

    from pipezoo_mistral.model import MistralPipelineModel
    from pipezoo_mistral.weight_adapters import adapt_safetensors

    return [
        SupportedArchitecture(
            name="MistralForCausalLM",
            model_types=("mistral",),
            pipeline_model=MistralPipelineModel,
            huggingface_config=MistralConfig.from_dict,
            weight_adapters={WeightsFormat.safetensors: adapt_safetensors},
        )
    ]
