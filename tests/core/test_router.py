"""The layer that chooses experts: in float32 in torch, and in the native kernel."""

import pytest
import torch
from core.experts_alone import random_experts, use_native

from pipezoo_core.layers import Router, Routing, set_dtype

ROUTINGS = {
    "softmax": {},
    "normalized": {"normalize": True},
    "more_than_the_sum": {"normalize": True, "added_to_sum": 0.9},
    "of_chosen": {"scores": "softmax_of_chosen", "scale": 2.5},
    "groups": {"num_groups": 4, "num_chosen_groups": 2, "scale": 2.5},
    "groups_by_their_best": {"scores": "sigmoid", "normalize": True, "num_groups": 5, "num_chosen_groups": 2,
                             "group_best": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", ROUTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("more", [False, True])
@torch.inference_mode()
def test_the_native_router_equals_torch(name, dtype, more):
    router = Router(50, Routing(num_experts=60, top_k=6, **ROUTINGS[name]), bias=more, correction=more)
    for parameter in router.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) / 4)
    x = torch.randn(70, 50, generator=torch.Generator().manual_seed(1)).to(dtype)
    indices, weights = router(x)
    use_native(router, dtype)
    found, found_weights = router(x)
    assert torch.equal(found, indices)
    torch.testing.assert_close(found_weights, weights, atol=1e-6, rtol=1e-5)
    for row in (0, 69, 33):
        assert all(
            torch.equal(a[0], b[row]) for a, b in zip(router(x[row : row + 1]), (found, found_weights), strict=True)
        )


@torch.inference_mode()
def test_ties_and_numbers_that_are_none():
    router = Router(8, Routing(num_experts=12, top_k=3, num_groups=4, num_chosen_groups=2))
    router.weight.zero_()
    use_native(router, torch.float32)
    x = torch.zeros(3, 8)
    x[1] = torch.nan
    indices, weights = router(x)
    assert indices[::2].tolist() == [[0, 1, 2]] * 2
    assert indices.min() >= 0
    assert indices.max() < 12
    assert weights[1].isnan().all()
    experts = random_experts(8, 64, 12, 3)
    use_native(experts, torch.float32)
    assert experts(x, indices, weights).isnan().all(-1).tolist() == [False, True, False]


@torch.inference_mode()
def test_the_router_is_float32_in_bfloat16():
    router = Router(64, Routing(num_experts=8, top_k=2, scores="sigmoid"), bias=True, correction=True)
    for parameter in router.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    set_dtype(router, torch.bfloat16)
    assert {parameter.dtype for parameter in router.parameters()} == {torch.float32}
    x = torch.randn(50, 64).bfloat16()
    scores = (x.double() @ router.weight.double().T + router.bias.double()).sigmoid()
    indices, weights = router(x)
    assert torch.equal(indices, (scores + router.e_score_correction_bias.double()).topk(2).indices)
    torch.testing.assert_close(weights, scores.gather(1, indices).float())
