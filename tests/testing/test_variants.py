"""Which configs are tried, and that a mistake in what one alone has is found beside those that have it not."""

import pytest
import torch
from testing.planting import Bug, forget, plant

from pipezoo_core.config import KVCacheConfig
from pipezoo_core.testing import ConformanceError, tiny_configs
from pipezoo_core.testing.agreement import check_same_logits
from pipezoo_core.testing.attention_causes import _numbers
from pipezoo_core.testing.bench import Bench
from pipezoo_core.testing.claims import one_of_each_kind, those_claiming
from pipezoo_core.testing.reference import make_reference
from pipezoo_core.testing.running_checks import check_memory_plan, check_two_ranks
from pipezoo_core.testing.steps import logits_of
from pipezoo_core.testing.tiny_configs import sharpened

ROWS = "self.o_proj = RowParallelLinear(queries, config.hidden_size, bias=config.attention_bias)"
WHOLE_WHERE_BIASED = f"""from pipezoo_core.layers import Linear
        {ROWS}
        if config.attention_bias:
            self.o_proj = Linear(config.num_heads * config.head_dim, config.hidden_size, bias=True)"""


def test_two_ranks_of_a_model_with_biases(tmp_path, monkeypatch):
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    bug = Bug("", "pipezoo_llama", "model.py", ROWS, WHOLE_WHERE_BIASED, "llama", "plain", "two_ranks", "")
    configs = {name: tiny_configs("llama")[name] for name in ("plain", "attention_bias")}
    distribution = plant(bug, site)
    try:
        bench = Bench(tmp_path / "bench", distribution)
        with pytest.raises(ConformanceError, match=r"config 'attention_bias': .*two ranks"):
            check_two_ranks(bench.plugin(configs), bench.subjects(configs))
    finally:
        forget(distribution)


def test_modules_are_of_a_kind_where_their_parameters_are(tmp_path):
    made = tiny_configs("llama")
    configs = {**made, "again": made["plain"]}
    subjects = Bench(tmp_path).subjects(configs)
    assert [each.name for each in those_claiming("lora", subjects)] == list(made)
    assert [each.name for each in one_of_each_kind(subjects)] == ["plain"]


def test_a_switch_that_does_nothing_is_not_tried():
    assert "no_bias" not in tiny_configs("mpt")


@pytest.mark.parametrize("model_type", ["deepseek_v2", "deepseek_v3"])
def test_a_latent_has_keys_for_every_query_head(model_type):
    plain = tiny_configs(model_type)["plain"]
    assert plain["num_key_value_heads"] == plain["num_attention_heads"]


def test_what_is_stored_and_no_parameter_has_noise_too():
    made = make_reference(sharpened(tiny_configs("deepseek_v3")["plain"]), None).state_dict()
    biases = [tensor for name, tensor in made.items() if name.endswith("e_score_correction_bias")]
    assert biases
    assert all(bias.unique().numel() == bias.numel() for bias in biases)


def test_numbers_of_text_become_telling_ones_beside_images():
    made = sharpened(tiny_configs("gemma3")["plain"])
    assert made["text_config"]["rms_norm_eps"] == 0.03
    assert made["text_config"]["rope_parameters"]["full_attention"]["rope_theta"] < 5000
    assert made["vision_config"]["num_hidden_layers"] == 1


def test_the_memory_plan_of_a_model_with_more_layers(tmp_path):
    bench, configs = Bench(tmp_path), {"deep": {**tiny_configs("llama")["plain"], "num_hidden_layers": 10}}
    check_memory_plan(bench.plugin(configs), bench.subjects(configs))


def test_prompts_that_the_tiny_cache_has_no_room_for(tmp_path):
    (subject,) = Bench(tmp_path).subjects({"plain": tiny_configs("llama")["plain"]})
    model = subject.load(kv_cache=KVCacheConfig(page_size=8, kv_cache_memory=2**17))
    with pytest.raises(ConformanceError, match="no room for the prompts"):
        logits_of(model, subject.prompts)


def test_logits_of_another_shape():
    with pytest.raises(
        ConformanceError, match=r"other: prompt 2 of 2, by their shape \(found: .*3.*99.*allowed: .*3.*100"
    ):
        check_same_logits(
            [torch.zeros(1, 5), torch.zeros(3, 99)], [torch.zeros(1, 5), torch.zeros(3, 100)], "other: {}", "why"
        )


def test_switches_are_no_numbers_of_a_config():
    assert _numbers({"sliding_window": 8, "use_sliding_window": True}, "window") == [8]
