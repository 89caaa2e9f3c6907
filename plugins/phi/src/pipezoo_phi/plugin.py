"""What this plugin serves. Imports no torch before it is chosen."""

from __future__ import annotations

from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.config import WeightsFormat
from pipezoo_core.hookspecs import hookimpl

__all__ = ["API_VERSION", "pipezoo_architectures"]

API_VERSION = 2


@hookimpl
def pipezoo_architectures() -> list[SupportedArchitecture]:
    """Returns Phi and Phi-3."""
    from pipezoo_phi.config import config_from_gguf
    from pipezoo_phi.huggingface_config import Phi3HuggingFaceConfig, PhiHuggingFaceConfig
    from pipezoo_phi.phi import PhiPipelineModel
    from pipezoo_phi.phi3 import Phi3PipelineModel
    from pipezoo_phi.weight_adapters import adapt_phi, adapt_phi3, adapt_phi3_gguf, adapt_phi_gguf

    return [
        SupportedArchitecture(
            name="PhiForCausalLM",
            model_types=("phi",),
            pipeline_model=PhiPipelineModel,
            huggingface_config=PhiHuggingFaceConfig.from_dict,
            weight_adapters={WeightsFormat.safetensors: adapt_phi, WeightsFormat.gguf: adapt_phi_gguf},
            config_from_gguf=config_from_gguf,
        ),
        SupportedArchitecture(
            name="Phi3ForCausalLM",
            model_types=("phi3",),
            pipeline_model=Phi3PipelineModel,
            huggingface_config=Phi3HuggingFaceConfig.from_dict,
            weight_adapters={WeightsFormat.safetensors: adapt_phi3, WeightsFormat.gguf: adapt_phi3_gguf},
            config_from_gguf=config_from_gguf,
        ),
    ]
