"""The choice of experts against the routers of transformers."""

from types import SimpleNamespace

import pytest
import torch
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter
from transformers.models.lfm2_moe.modeling_lfm2_moe import Lfm2MoeTopKRouter
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.layers.routing import Routing

SIZES = {"num_experts": 16, "num_local_experts": 16, "num_experts_per_tok": 4, "hidden_size": 24}
GROUPS = {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}
V2, V3 = {"num_groups": 4, "num_chosen_groups": 2, "scale": 2.5}, {"scores": "sigmoid", "group_best": 2}
LFM2 = {"use_expert_bias": False, "routed_scaling_factor": 1.5}
LFM2_OURS = {"scores": "sigmoid", "added_to_sum": 1e-6, "scale": 1.5}
# name -> the reference, its config, ours
KINDS = {
    "mixtral": (MixtralTopKRouter, {}, {"normalize": True}),
    "qwen3_normalized": (Qwen3MoeTopKRouter, {"norm_topk_prob": True}, {"normalize": True}),
    "qwen3": (Qwen3MoeTopKRouter, {"norm_topk_prob": False}, {}),
    "gpt_oss": (GptOssTopKRouter, {}, {"scores": "softmax_of_chosen"}),
    "lfm2": (Lfm2MoeTopKRouter, {**LFM2, "norm_topk_prob": True}, {**LFM2_OURS, "normalize": True}),
    "lfm2_as_they_are": (Lfm2MoeTopKRouter, {**LFM2, "norm_topk_prob": False}, LFM2_OURS),
    "deepseek_v2_greedy": (DeepseekV2TopkRouter, {**GROUPS, "topk_method": "greedy"}, {"scale": 2.5}),
    "deepseek_v2_groups": (DeepseekV2TopkRouter, {**GROUPS, "topk_method": "group_limited_greedy"}, V2),
    "deepseek_v3": (DeepseekV3TopkRouter, {**GROUPS, "norm_topk_prob": True}, {**V2, **V3, "normalize": True}),
    "deepseek_v3_as_they_are": (DeepseekV3TopkRouter, {**GROUPS, "norm_topk_prob": False}, {**V2, **V3}),
}


@pytest.mark.parametrize("name", KINDS)
@torch.inference_mode()
def test_equals_transformers(name):
    router_class, config, ours = KINDS[name]
    torch.manual_seed(0)
    router = router_class(SimpleNamespace(**SIZES, **config))
    tensors = {**dict(router.named_parameters()), **dict(router.named_buffers())}
    for tensor in tensors.values():
        tensor.copy_(torch.randn(tensor.shape) * 0.3)
    correction = next((t.flatten() for key, t in tensors.items() if key.endswith("correction_bias")), None)
    logits, weights, indices = router(torch.randn(50, 24))
    found, found_weights = Routing(num_experts=16, top_k=4, **ours)(logits, correction)
    assert torch.equal(found.sort(-1).values, indices.sort(-1).values)
    in_order = [torch.zeros(50, 16).scatter(1, i, w) for i, w in ((found, found_weights), (indices, weights))]
    torch.testing.assert_close(in_order[0], in_order[1], atol=1e-6, rtol=1e-5)


def test_ties_go_to_the_first_whatever_else_is_in_the_batch():
    logits = torch.randint(0, 2, (40, 64), generator=torch.Generator().manual_seed(0)).float()
    routing = Routing(num_experts=64, top_k=8, num_groups=8, num_chosen_groups=3, group_best=2)
    together = routing(logits)
    for row in range(40):
        alone = routing(logits[row : row + 1])
        assert all(torch.equal(a[0], b[row]) for a, b in zip(alone, together, strict=True))
    assert Routing(num_experts=5, top_k=3)(torch.zeros(1, 5))[0].tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    "changes",
    [{"top_k": 17}, {"top_k": 0}, {"num_groups": 3}, {"num_groups": 8, "top_k": 3}, {"num_chosen_groups": 2},
     {"num_groups": 16, "group_best": 2, "top_k": 1}, {"num_groups": 0}],
)  # fmt: skip
def test_what_cannot_be_chosen(changes):
    with pytest.raises(UnsupportedModelError, match="experts cannot be chosen"):
        Routing(**{"num_experts": 16, "top_k": 2, **changes})
