"""What this plugin serves. Imports no torch before it is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.config import WeightsFormat
from pipezoo_core.hookspecs import hookimpl

__all__ = ["API_VERSION", "pipezoo_architectures"]

API_VERSION = 2


@hookimpl
def pipezoo_architectures() -> list[SupportedArchitecture]:
    """Returns Llama."""
    from pipezoo_llama.config import config_from_gguf
    from pipezoo_llama.huggingface_config import LlamaHuggingFaceConfig
    from pipezoo_llama.model import LlamaPipelineModel
    from pipezoo_llama.weight_adapters import adapt_gguf, adapt_safetensors

    return [
        SupportedArchitecture(
            name="LlamaForCausalLM",
            model_types=("llama",),
            pipeline_model=LlamaPipelineModel,
            huggingface_config=LlamaHuggingFaceConfig.from_dict,
            weight_adapters={WeightsFormat.safetensors: adapt_safetensors, WeightsFormat.gguf: adapt_gguf},
            config_from_gguf=config_from_gguf,
            probe=_probe,
        )
    ]


def _probe(config: Mapping[str, Any]) -> str | None:
    if config.get("num_experts") or config.get("num_local_experts"):
        return "it is a mixture of experts, which Llama is not"
    return None
