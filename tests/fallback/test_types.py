"""Every causal language model of transformers: equal to its own class, or refused with its reason."""

import pytest
from fallback.refused import REFUSED, refused_config
from fallback.served import assert_equal_logits, assert_equal_tokens, load_served, make_reference
from fallback.tiny_configs import TYPES

from pipezoo_core.layers import Experts
from pipezoo_transformers.interface import register
from pipezoo_transformers.refusals import why_not

SERVED = [name for name in TYPES if name not in REFUSED]
WITH_CORES_EXPERTS = {
    "afmoe", "aria_text", "axk1", "cohere2_moe", "deepseek_v2", "deepseek_v3", "dots1", "ernie4_5_moe", "exaone_moe",
    "flex_olmo", "glm4_moe", "glm4_moe_lite", "gpt_oss", "granitemoe", "granitemoe_swa", "granitemoeshared",
    "hunyuan_v1_moe", "hy_v3", "kolibri1", "laguna", "mellum", "mimo_v2_flash", "minimax_m2", "minimax_m3_vl_text",
    "mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe", "solar_open",
}  # fmt: skip


@pytest.mark.matrix
@pytest.mark.parametrize("model_type", SERVED)
def test_equals_transformers(model_type, tmp_path):
    """All at once, in chunks, and after a prefix that another request left."""
    reference = make_reference(model_type)
    model = load_served(reference, tmp_path)
    assert any(isinstance(module, Experts) for module in model.module.modules()) == (model_type in WITH_CORES_EXPERTS)
    assert_equal_logits(reference, model)
    assert_equal_logits(reference, model, chunk=7)
    assert_equal_tokens(reference, model)


def test_how_many_are_served():
    assert len(TYPES) == 189
    assert len(SERVED) == 102
    assert REFUSED.keys() <= set(TYPES)


@pytest.mark.parametrize("model_type", REFUSED)
def test_refused(model_type):
    register()
    assert REFUSED[model_type] in why_not(refused_config(model_type))
