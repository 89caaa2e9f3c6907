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
    return [_bloom(), _falcon(), _gpt2(), _gpt_neox(), _gptj(), _opt()]


def _bloom() -> SupportedArchitecture:
    from pipezoo_gpt.bloom.config import config_from_gguf
    from pipezoo_gpt.bloom.huggingface_config import BloomHuggingFaceConfig
    from pipezoo_gpt.bloom.model import BloomPipelineModel
    from pipezoo_gpt.bloom.weight_adapters import adapt_bloom, adapt_bloom_gguf

    return SupportedArchitecture(
        name="BloomForCausalLM",
        model_types=("bloom",),
        pipeline_model=BloomPipelineModel,
        huggingface_config=BloomHuggingFaceConfig.from_dict,
        weight_adapters={WeightsFormat.safetensors: adapt_bloom, WeightsFormat.gguf: adapt_bloom_gguf},
        config_from_gguf=config_from_gguf,
    )


def _falcon() -> SupportedArchitecture:
    from pipezoo_gpt.falcon.config import config_from_gguf
    from pipezoo_gpt.falcon.huggingface_config import FalconHuggingFaceConfig
    from pipezoo_gpt.falcon.model import FalconPipelineModel
    from pipezoo_gpt.falcon.weight_adapters import adapt_falcon, adapt_falcon_gguf

    return SupportedArchitecture(
        name="FalconForCausalLM",
        model_types=("falcon",),
        pipeline_model=FalconPipelineModel,
        huggingface_config=FalconHuggingFaceConfig.from_dict,
        weight_adapters={WeightsFormat.safetensors: adapt_falcon, WeightsFormat.gguf: adapt_falcon_gguf},
        config_from_gguf=config_from_gguf,
    )


def _gpt2() -> SupportedArchitecture:
    from pipezoo_gpt.gpt2.config import config_from_gguf
    from pipezoo_gpt.gpt2.huggingface_config import GPT2HuggingFaceConfig
    from pipezoo_gpt.gpt2.model import GPT2PipelineModel
    from pipezoo_gpt.gpt2.weight_adapters import adapt_gpt2, adapt_gpt2_gguf

    return SupportedArchitecture(
        name="GPT2LMHeadModel",
        model_types=("gpt2",),
        pipeline_model=GPT2PipelineModel,
        huggingface_config=GPT2HuggingFaceConfig.from_dict,
        weight_adapters={WeightsFormat.safetensors: adapt_gpt2, WeightsFormat.gguf: adapt_gpt2_gguf},
        config_from_gguf=config_from_gguf,
    )


def _gpt_neox() -> SupportedArchitecture:
    from pipezoo_gpt.gpt_neox.config import config_from_gguf
    from pipezoo_gpt.gpt_neox.huggingface_config import GPTNeoXHuggingFaceConfig
    from pipezoo_gpt.gpt_neox.model import GPTNeoXPipelineModel
    from pipezoo_gpt.gpt_neox.weight_adapters import adapt_gpt_neox, adapt_gpt_neox_gguf

    return SupportedArchitecture(
        name="GPTNeoXForCausalLM",
        model_types=("gpt_neox",),
        pipeline_model=GPTNeoXPipelineModel,
        huggingface_config=GPTNeoXHuggingFaceConfig.from_dict,
        weight_adapters={WeightsFormat.safetensors: adapt_gpt_neox, WeightsFormat.gguf: adapt_gpt_neox_gguf},
        config_from_gguf=config_from_gguf,
    )


def _gptj() -> SupportedArchitecture:
    from pipezoo_gpt.gptj.huggingface_config import GPTJHuggingFaceConfig
    from pipezoo_gpt.gptj.model import GPTJPipelineModel
    from pipezoo_gpt.gptj.weight_adapters import adapt_gptj

    return SupportedArchitecture(
        name="GPTJForCausalLM",
        model_types=("gptj",),
        pipeline_model=GPTJPipelineModel,
        huggingface_config=GPTJHuggingFaceConfig.from_dict,
        weight_adapters={WeightsFormat.safetensors: adapt_gptj},
    )


def _opt() -> SupportedArchitecture:
    from pipezoo_gpt.opt.huggingface_config import OPTHuggingFaceConfig
    from pipezoo_gpt.opt.model import OPTPipelineModel
    from pipezoo_gpt.opt.weight_adapters import adapt_opt

    return SupportedArchitecture(
        name="OPTForCausalLM",
        model_types=("opt",),
        pipeline_model=OPTPipelineModel,
        huggingface_config=OPTHuggingFaceConfig.from_dict,
        weight_adapters={WeightsFormat.safetensors: adapt_opt},
    )
