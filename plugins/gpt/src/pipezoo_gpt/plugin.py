"""What this plugin serves. Imports no torch before it is chosen."""

from __future__ import annotations

from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.config import WeightsFormat
from pipezoo_core.hookspecs import hookimpl

__all__ = ["API_VERSION", "pipezoo_architectures"]

API_VERSION = 2


@hookimpl
def pipezoo_architectures() -> list[SupportedArchitecture]:
    """Returns the architectures, each in a package of its own."""
    from pipezoo_gpt.gpt2.config import config_from_gguf as gpt2_from_gguf
    from pipezoo_gpt.gpt2.huggingface_config import GPT2HuggingFaceConfig
    from pipezoo_gpt.gpt2.model import GPT2PipelineModel
    from pipezoo_gpt.gpt2.weight_adapters import adapt_gpt2, adapt_gpt2_gguf
    from pipezoo_gpt.gpt_neox.config import config_from_gguf as gpt_neox_from_gguf
    from pipezoo_gpt.gpt_neox.huggingface_config import GPTNeoXHuggingFaceConfig
    from pipezoo_gpt.gpt_neox.model import GPTNeoXPipelineModel
    from pipezoo_gpt.gpt_neox.weight_adapters import adapt_gpt_neox, adapt_gpt_neox_gguf
    from pipezoo_gpt.gptj.huggingface_config import GPTJHuggingFaceConfig
    from pipezoo_gpt.gptj.model import GPTJPipelineModel
    from pipezoo_gpt.gptj.weight_adapters import adapt_gptj

    return [
        SupportedArchitecture(
            name="GPT2LMHeadModel",
            model_types=("gpt2",),
            pipeline_model=GPT2PipelineModel,
            huggingface_config=GPT2HuggingFaceConfig.from_dict,
            weight_adapters={WeightsFormat.safetensors: adapt_gpt2, WeightsFormat.gguf: adapt_gpt2_gguf},
            config_from_gguf=gpt2_from_gguf,
        ),
        SupportedArchitecture(
            name="GPTNeoXForCausalLM",
            model_types=("gpt_neox",),
            pipeline_model=GPTNeoXPipelineModel,
            huggingface_config=GPTNeoXHuggingFaceConfig.from_dict,
            weight_adapters={WeightsFormat.safetensors: adapt_gpt_neox, WeightsFormat.gguf: adapt_gpt_neox_gguf},
            config_from_gguf=gpt_neox_from_gguf,
        ),
        SupportedArchitecture(
            name="GPTJForCausalLM",
            model_types=("gptj",),
            pipeline_model=GPTJPipelineModel,
            huggingface_config=GPTJHuggingFaceConfig.from_dict,
            weight_adapters={WeightsFormat.safetensors: adapt_gptj},
        ),
    ]
