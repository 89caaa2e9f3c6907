"""What this plugin serves. Imports no torch before it is chosen."""

from __future__ import annotations

from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.config import WeightsFormat
from pipezoo_core.hookspecs import hookimpl

__all__ = ["API_VERSION", "pipezoo_architectures"]

API_VERSION = 2


@hookimpl
def pipezoo_architectures() -> list[SupportedArchitecture]:
    """Returns StableLm."""
    from transformers import StableLmConfig as StableLmHuggingFaceConfig

    from pipezoo_stablelm.model import StableLmPipelineModel
    from pipezoo_stablelm.weight_adapters import adapt_safetensors

    return [
        SupportedArchitecture(
            name="StableLmForCausalLM",
            model_types=("stablelm",),
            pipeline_model=StableLmPipelineModel,
            huggingface_config=StableLmHuggingFaceConfig.from_dict,
            weight_adapters={WeightsFormat.safetensors: adapt_safetensors},
        )
    ]
