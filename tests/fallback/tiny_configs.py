"""A tiny random config of each type that transformers has a causal language model of."""

import dataclasses

from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

TYPES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCAB = 99
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_group": 1,
    "topk_group": 1,
    "sliding_window": 12,
    "attention_chunk_size": 12,
    "first_k_dense_replace": 1,
    "vocab_size_per_layer_input": VOCAB,
    "hidden_size_per_layer_input": 8,
    "ffn_hidden_size": 96,
    "word_embed_proj_dim": 64,
    "ffn_dim": 96,
    "laurel_rank": 8,
    "expert_ffn_hidden_size": 32,
    "global_head_dim": 16,
}
FIXED = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LATENT = {"num_key_value_heads": 4}  # latent attention expands keys and values to all heads
DECODER = {"is_decoder": True}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SPECIAL = {
    "axk1": LATENT,
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "glm4_moe_lite": LATENT,
    "minicpm3": LATENT,
    "youtu": LATENT,
    "dots3_note_text": LATENT,
    "longcat_flash": {**LATENT, "num_layers": 1, "head_dim": 8, "moe_topk": 2, "zero_expert_num": 2},
    "llama4": {"num_hidden_layers": 4},  # of which one sees more than its chunk
    "llama4_text": {"num_hidden_layers": 4},
    "emu3": {"vocab_size": VOCAB},
    "dots1": {"n_shared_experts": 1},
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 32},
        "d_model": 64,
        "max_seq_len": 256,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "zaya": {"num_experts_per_tok": 1},
    **dict.fromkeys(
        (
            "bert",
            "bert-generation",
            "camembert",
            "data2vec-text",
            "electra",
            "ernie",
            "roberta",
            "roberta-prelayernorm",
            "roc_bert",
            "xlm-roberta",
            "xlm-roberta-xl",
        ),
        DECODER,
    ),
    "xmod": {**DECODER, "default_language": "en_XX", "languages": ["en_XX"]},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
}


def tiny_config(model_type, **changes):
    """Returns the config, of one with several parts with a tiny text part."""
    config_class = CONFIG_MAPPING[model_type]
    if "text_config" in config_class.sub_configs:
        return config_class(text_config=_tiny(config_class.sub_configs["text_config"], model_type, changes).to_dict())
    return _tiny(config_class, model_type, changes)


def _tiny(config_class, model_type, changes):
    names = {field.name for field in dataclasses.fields(config_class)}
    sizes = {config_class.attribute_map.get(name, name): value for name, value in (SIZES | FIXED).items()}
    values = {name: value for name, value in sizes.items() if name in names}
    return config_class(**(values | SPECIAL.get(model_type, {}) | changes))
