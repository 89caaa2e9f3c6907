"""What this plugin serves. Imports no torch before it is chosen."""

from __future__ import annotations

from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.config import Capability, WeightsFormat
from pipezoo_core.hookspecs import hookimpl

__all__ = ["API_VERSION", "pipezoo_architectures"]

API_VERSION = 2


@hookimpl
def pipezoo_architectures() -> list[SupportedArchitecture]:
    """Returns Granite 4."""
    from pipezoo_granite.gguf import adapt_gguf, config_from_gguf
    from pipezoo_granite.huggingface_config import read_config
    from pipezoo_granite.model import GranitePipelineModel
    from pipezoo_granite.weight_adapters import adapt_safetensors

    return [
        SupportedArchitecture(
            name="GraniteMoeHybridForCausalLM",
            model_types=("granitemoehybrid",),
            pipeline_model=GranitePipelineModel,
            huggingface_config=read_config,
            weight_adapters={WeightsFormat.safetensors: adapt_safetensors, WeightsFormat.gguf: adapt_gguf},
            config_from_gguf=config_from_gguf,
            not_claimed={Capability.tensor_parallelism: "states of layers are not divided"},
        )
    ]
