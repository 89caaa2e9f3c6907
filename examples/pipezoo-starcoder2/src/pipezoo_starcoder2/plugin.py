"""What this plugin serves. Imports no torch before it is chosen."""

from __future__ import annotations

from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.config import WeightsFormat
from pipezoo_core.hookspecs import hookimpl

__all__ = ["API_VERSION", "pipezoo_architectures"]

API_VERSION = 2


@hookimpl
def pipezoo_architectures() -> list[SupportedArchitecture]:
    """Returns Starcoder2."""
    from transformers import Starcoder2Config as Starcoder2HuggingFaceConfig

    from pipezoo_starcoder2.model import Starcoder2PipelineModel
    from pipezoo_starcoder2.weight_adapters import adapt_safetensors

    return [
        SupportedArchitecture(
            name="Starcoder2ForCausalLM",
            model_types=("starcoder2",),
            pipeline_model=Starcoder2PipelineModel,
            huggingface_config=Starcoder2HuggingFaceConfig.from_dict,
            weight_adapters={WeightsFormat.safetensors: adapt_safetensors},
        )
    ]
