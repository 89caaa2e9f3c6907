"""What this plugin serves. Imports no torch before it is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.config import Capability, WeightsFormat
from pipezoo_core.hookspecs import hookimpl

__all__ = ["API_VERSION", "pipezoo_architectures"]

API_VERSION = 1


@hookimpl
def pipezoo_architectures() -> list[SupportedArchitecture]:
    """Returns one that stands for every decoder of transformers."""
    from pipezoo_transformers.config import read_huggingface_config
    from pipezoo_transformers.interface import register
    from pipezoo_transformers.model import TransformersPipelineModel
    from pipezoo_transformers.weight_adapter import adapt_safetensors

    register()
    return [
        SupportedArchitecture(
            name="TransformersForCausalLM",
            model_types=("*",),
            pipeline_model=TransformersPipelineModel,
            huggingface_config=read_huggingface_config,
            weight_adapters={WeightsFormat.safetensors: adapt_safetensors},
            probe=_probe,
            not_claimed={Capability.tensor_parallelism: "one device computes a model of transformers"},
        )
    ]


def _probe(config: Mapping[str, Any]) -> str | None:
    from pipezoo_transformers.refusals import why_not

    return why_not(config)
