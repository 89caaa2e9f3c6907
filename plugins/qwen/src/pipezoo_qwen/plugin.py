"""What this plugin serves. Imports no torch before it is chosen."""

from __future__ import annotations

from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.config import Capability, WeightsFormat
from pipezoo_core.hookspecs import hookimpl

__all__ = ["API_VERSION", "pipezoo_architectures"]

API_VERSION = 2


@hookimpl
def pipezoo_architectures() -> list[SupportedArchitecture]:
    """Returns Qwen2 and Qwen3 with their mixtures of experts, Qwen3-Next, and Qwen3.5, of which it reads the text."""
    from pipezoo_qwen.config import config_from_gguf
    from pipezoo_qwen.huggingface_config import (
        Qwen2HuggingFaceConfig,
        Qwen2MoeHuggingFaceConfig,
        Qwen3HuggingFaceConfig,
        Qwen3MoeHuggingFaceConfig,
    )
    from pipezoo_qwen.hybrid.gguf import adapt_hybrid_gguf, hybrid_config_from_gguf
    from pipezoo_qwen.hybrid.huggingface_config import (
        Qwen3NextHuggingFaceConfig,
        Qwen35HuggingFaceConfig,
        Qwen35MoeHuggingFaceConfig,
        text_part,
        text_part_of_mixture,
    )
    from pipezoo_qwen.hybrid.model import QwenHybridPipelineModel
    from pipezoo_qwen.hybrid.weight_adapters import adapt_hybrid
    from pipezoo_qwen.model import QwenPipelineModel
    from pipezoo_qwen.weight_adapters import adapt_gguf, adapt_safetensors

    hybrids = [
        SupportedArchitecture(
            name=name,
            model_types=(model_type,),
            pipeline_model=QwenHybridPipelineModel,
            huggingface_config=huggingface_config,
            weight_adapters={WeightsFormat.safetensors: adapt_hybrid, WeightsFormat.gguf: adapt_hybrid_gguf},
            config_from_gguf=hybrid_config_from_gguf,
            not_claimed={Capability.tensor_parallelism: "states of layers are not divided"},
        )
        for name, model_type, huggingface_config in (
            ("Qwen3NextForCausalLM", "qwen3_next", Qwen3NextHuggingFaceConfig.from_dict),
            ("Qwen3_5ForCausalLM", "qwen3_5_text", Qwen35HuggingFaceConfig.from_dict),
            ("Qwen3_5ForConditionalGeneration", "qwen3_5", text_part),
            ("Qwen3_5MoeForCausalLM", "qwen3_5_moe_text", Qwen35MoeHuggingFaceConfig.from_dict),
            ("Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe", text_part_of_mixture),
        )
    ]
    return hybrids + [
        SupportedArchitecture(
            name=f"{family}ForCausalLM",
            model_types=(config_class.model_type,),
            pipeline_model=QwenPipelineModel,
            huggingface_config=config_class.from_dict,
            weight_adapters={WeightsFormat.safetensors: adapt_safetensors, WeightsFormat.gguf: adapt_gguf},
            config_from_gguf=config_from_gguf,
        )
        for family, config_class in (
            ("Qwen2", Qwen2HuggingFaceConfig),
            ("Qwen3", Qwen3HuggingFaceConfig),
            ("Qwen2Moe", Qwen2MoeHuggingFaceConfig),
            ("Qwen3Moe", Qwen3MoeHuggingFaceConfig),
        )
    ]
