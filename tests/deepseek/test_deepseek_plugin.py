"""What the deepseek plugin tells the registry, which configs it reads, and which it refuses."""

import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import DeepseekV2Config, DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

from pipezoo import registry
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_deepseek.config import DeepseekConfig
from pipezoo_deepseek.huggingface_config import DeepseekV2HuggingFaceConfig, DeepseekV3HuggingFaceConfig

# As the checkpoints' config.json files, cut to what matters.
V2_LITE = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 100000,
    "eos_token_id": 100001,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v2",
    "moe_intermediate_size": 1408,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "greedy",
    "v_head_dim": 128,
    "vocab_size": 102400,
}
V3 = {
    **V2_LITE,
    "architectures": ["DeepseekV3ForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 1,
    "first_k_dense_replace": 3,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "rope_scaling": {**V2_LITE["rope_scaling"], "mscale": 1.0, "mscale_all_dim": 1.0},
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "vocab_size": 129280,
}
OURS = {"deepseek_v2": DeepseekV2HuggingFaceConfig, "deepseek_v3": DeepseekV3HuggingFaceConfig}
THEIRS = {"deepseek_v2": DeepseekV2Config, "deepseek_v3": DeepseekV3Config}


@pytest.mark.parametrize(
    ("raw", "query_rank", "temperature", "groups"), [(V2_LITE, None, 1.2608, 1), (V3, 1536, 1.3689, 8)]
)
def test_configs_of_the_checkpoints(raw, query_rank, temperature, groups, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(raw))
    resolution = registry.resolve(tmp_path)
    assert (resolution.plugin.distribution, resolution.plugin.name) == ("pipezoo-deepseek", raw["model_type"])
    config = DeepseekConfig.from_huggingface(resolution.architecture.huggingface_config(raw))
    (spec,) = set(config.layers)
    assert (spec.head_dim, spec.value_size, spec.num_kv_heads, spec.values_in_keys) == (576, 512, 1, True)
    assert spec.scale == pytest.approx(192**-0.5 * temperature**2, rel=1e-4)
    assert (config.max_seq_len, config.query_rank) == (163840, query_rank)
    assert (config.routing.num_groups, config.routing.top_k) == (groups, raw["num_experts_per_tok"])
    assert config.has_correction == (raw is V3)


@pytest.mark.parametrize("logit", [-46.0, -200.0])
@torch.inference_mode()
def test_what_is_added_to_the_sum_of_small_scores(logit):
    """The sigmoids' sum is about as small as that, or 0."""
    sizes = {"n_routed_experts": 16, "hidden_size": 16, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 4}
    router = DeepseekV3TopkRouter(DeepseekV3Config(**sizes))
    router.weight.copy_(torch.eye(16))
    logits, weights, indices = router(torch.randn(50, 16, generator=torch.Generator().manual_seed(0)) + logit)
    assert weights.isfinite().all()
    routing = DeepseekConfig.from_huggingface(DeepseekV3HuggingFaceConfig(**sizes)).routing
    assert (weights.sum(-1) < 0.9 * routing.scale).any()
    found, found_weights = routing(logits)
    ours, theirs = (torch.zeros(50, 16).scatter(1, i, w) for i, w in ((found, found_weights), (indices, weights)))
    torch.testing.assert_close(ours, theirs, atol=0, rtol=1e-5)


@pytest.mark.parametrize("family", OURS)
@pytest.mark.parametrize(
    "said",
    [
        {"num_experts_per_tok": 4},
        {"num_experts_per_tok": 2, "q_lora_rank": None, "rope_theta": 5e5},
        {"num_experts_per_tok": 2, "num_key_value_heads": None, "num_attention_heads": 16},
        {"num_experts_per_tok": 2, "rope_scaling": V3["rope_scaling"]},
        {"num_experts_per_tok": 2, "attention_bias": True, "tie_word_embeddings": True},
    ],
    ids=str,
)
def test_configs_are_read_as_by_transformers(family, said):
    mine, theirs = OURS[family].from_dict(dict(said)), THEIRS[family].from_dict(dict(said))
    assert DeepseekConfig.from_huggingface(mine) == DeepseekConfig.from_huggingface(theirs)


@pytest.mark.parametrize(
    ("raw", "said", "why"),
    [
        *(
            (raw, said, why)
            for raw in (V2_LITE, V3)
            for said, why in [
                ({"hidden_act": "no_such_function"}, "hidden_act is none"),
                ({"moe_layer_freq": 2}, "moe_layer_freq is none"),
                ({"scoring_func": "tanh"}, "scoring_func is none"),
                ({"topk_method": "best"}, "topk_method is none"),
                ({"num_key_value_heads": 4}, "num_key_value_heads is none"),
                ({"n_shared_experts": 0}, "n_shared_experts is not positive"),
                ({"q_lora_rank": 0}, "q_lora_rank is not positive"),
                ({"num_experts_per_tok": None}, "num_experts_per_tok is not positive"),
                ({"num_experts_per_tok": 300}, "experts cannot be chosen"),
                ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}, "unknown kind of RoPE"),
            ]
        ),
        (V2_LITE, {"norm_topk_prob": True}, "norm_topk_prob is none"),
        (V2_LITE, {"topk_method": "group_limited_greedy", "n_group": None}, "experts cannot be chosen"),
        (V3, {"n_group": None}, "experts cannot be chosen"),
        (V3, {"n_group": 256}, "experts cannot be chosen"),
    ],
)
def test_refused(raw, said, why):
    with pytest.raises((UnsupportedModelError, StrictDataclassError), match=why):
        DeepseekConfig.from_huggingface(OURS[raw["model_type"]].from_dict({**raw, **said}))
