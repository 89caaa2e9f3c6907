"""What this plugin serves. Imports no torch before it is chosen."""

from __future__ import annotations

from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.config import Capability, WeightsFormat
from pipezoo_core.hookspecs import hookimpl

__all__ = ["API_VERSION", "pipezoo_architectures"]

API_VERSION = 2


@hookimpl
def pipezoo_architectures() -> list[SupportedArchitecture]:
    """Returns Nemotron-H."""
    from pipezoo_nemotron.gguf import adapt_gguf, config_from_gguf
    from pipezoo_nemotron.huggingface_config import read_config
    from pipezoo_nemotron.model import NemotronPipelineModel
    from pipezoo_nemotron.weight_adapters import adapt_safetensors

    return [
        SupportedArchitecture(
            name="NemotronHForCausalLM",
            model_types=("nemotron_h",),
            pipeline_model=NemotronPipelineModel,
            huggingface_config=read_config,
            weight_adapters={WeightsFormat.safetensors: adapt_safetensors, WeightsFormat.gguf: adapt_gguf},
            config_from_gguf=config_from_gguf,
            not_claimed={Capability.tensor_parallelism: "states of layers are not divided"},
        )
    ]
