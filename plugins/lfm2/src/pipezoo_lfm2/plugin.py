"""What this plugin serves. Imports no torch before it is chosen."""

from __future__ import annotations

from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.config import Capability, WeightsFormat
from pipezoo_core.hookspecs import hookimpl

__all__ = ["API_VERSION", "pipezoo_architectures"]

API_VERSION = 2


@hookimpl
def pipezoo_architectures() -> list[SupportedArchitecture]:
    """Returns LFM2, and LFM2 with experts."""
    from pipezoo_lfm2.config import config_from_gguf
    from pipezoo_lfm2.huggingface_config import Lfm2HuggingFaceConfig, Lfm2MoeHuggingFaceConfig
    from pipezoo_lfm2.model import Lfm2PipelineModel
    from pipezoo_lfm2.weight_adapters import adapt_gguf, adapt_safetensors

    return [
        SupportedArchitecture(
            name=name,
            model_types=(config_class.model_type,),
            pipeline_model=Lfm2PipelineModel,
            huggingface_config=config_class.from_dict,
            weight_adapters={WeightsFormat.safetensors: adapt_safetensors, WeightsFormat.gguf: adapt_gguf},
            config_from_gguf=config_from_gguf,
            not_claimed={Capability.tensor_parallelism: "states of layers are not divided"},
        )
        for name, config_class in (
            ("Lfm2ForCausalLM", Lfm2HuggingFaceConfig),
            ("Lfm2MoeForCausalLM", Lfm2MoeHuggingFaceConfig),
        )
    ]
