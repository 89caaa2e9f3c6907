"""The types of transformers that are refused, and what the reason says."""

from fallback.tiny_configs import tiny_config
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

STATE = "keeps a state of earlier tokens"
ENCODER = "has an encoder"
MASK = "computes with its attention mask"
OUTSIDE = "not computed through transformers' attention interface"
PADDING = "counts positions by which tokens are padding"
MORE = "takes more than text"
LENGTH = "does not say how many positions"

REFUSED = {
    **dict.fromkeys(
        (
            "axk2", "bailing_hybrid", "bamba", "deepseek_v32", "deepseek_v4", "dots3_note", "dots3_note_text",
            "falcon_h1", "falcon_mamba", "glm_moe_dsa", "granitemoehybrid", "hy_v4", "inkling2_text", "inkling_text",
            "jamba", "kimi_linear", "lfm2_moe", "lfm3", "mamba", "mamba2", "minimax", "nemotron_h", "olmo_hybrid",
            "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next", "qwen4_exp",
            "qwen4_exp_text", "recurrent_gemma", "rwkv", "xlstm", "zamba", "zamba2", "zaya",
        ),
        STATE,
    ),
    **dict.fromkeys(
        (
            "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp", "pegasus", "plbart",
            "musicgen", "musicgen_melody",
            "prophetnet", "whisper",
        ),
        ENCODER,
    ),
    **dict.fromkeys(
        ("big_bird", "doge", "gpt_neox_japanese", "megatron-bert", "mpt", "rembert", "roformer"), MASK
    ),
    **dict.fromkeys(
        (
            "codegen", "falcon", "gpt_neo", "gptj", "openai-gpt", "trocr", "xglm", "xlm", "xlnet",
        ),
        OUTSIDE,
    ),
    **dict.fromkeys(
        (
            "camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
        ),
        PADDING,
    ),
    **dict.fromkeys(
        (
            "fuyu", "gemma3", "gemma3n", "gemma4", "gemma4_unified", "gemma4_unified_assistant",
            "got_ocr2", "moss_transcribe_diarize", "phi4_multimodal", "git",
        ),
        MORE,
    ),
    "bloom": LENGTH,
    "cpmant": LENGTH,
    "blt": "adds numbers of its own to the scores",
    "gemma4_assistant": "cannot make a model of its config.json",
    "reformer": "cannot make a model of its config.json",
}  # fmt: skip

WITH_DEFAULTS = {
    "dots3_note", "fuyu", "gemma4_assistant", "gemma4_unified_assistant", "got_ocr2", "gpt_neo", "mamba2",
    "moss_transcribe_diarize", "musicgen", "musicgen_melody", "zamba", "zamba2",
}  # fmt: skip
"""Those whose config classes accept no other sizes than their own."""


def refused_config(model_type):
    """Returns the parsed config.json of a model that is refused."""
    assert model_type in CONFIG_MAPPING
    return {"model_type": model_type} if model_type in WITH_DEFAULTS else tiny_config(model_type).to_dict()
