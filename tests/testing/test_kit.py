"""The kit by itself: what it finds, what it skips, and what it does not let pass."""

import json
from dataclasses import replace

import pytest
from testing.bugs import BUGS
from testing.planting import Bug, forget, plant
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from pipezoo.cli.main import app
from pipezoo_core.config import Capability, SupportedEncoding
from pipezoo_core.testing import (
    CHECKS,
    ConformanceError,
    NotCheckedError,
    PluginConformance,
    discovery_checks,
    overrides_check,
    tiny_configs,
)
from pipezoo_core.testing.bench import Bench
from pipezoo_core.testing.bits_checks import check_int8
from pipezoo_core.testing.discovery_checks import check_discovery, check_rediscovery
from pipezoo_core.testing.lora_checks import check_lora
from pipezoo_core.testing.model_checks import check_log_probabilities, check_saved_in_shards, check_weights
from pipezoo_core.testing.running_checks import check_memory_plan
from pipezoo_core.testing.tiny_configs import sharpened
from pipezoo_llama.plugin import pipezoo_architectures

PLAIN = {"plain": tiny_configs("llama")["plain"]}


class PlainLlama(nn.Module):
    """A reference that is none of transformers' classes: it is made of config.json and returns logits."""

    def __init__(self, config):
        super().__init__()
        whole = LlamaForCausalLM(LlamaConfig.from_dict(config))
        self.model, self.lm_head = whole.model, whole.lm_head

    def forward(self, tokens):
        return self.lm_head(self.model(tokens).last_hidden_state)


@pytest.fixture
def llama(tmp_path):
    return Bench(tmp_path)


def test_the_class_has_a_method_for_each_check():
    methods = {name.removeprefix("test_") for name in vars(PluginConformance) if name.startswith("test_")}
    assert methods == {"overrides", *(check.name for check in CHECKS)}
    for check in CHECKS:
        asked = []
        getattr(PluginConformance(), f"test_{check.name}")(asked.append)
        assert asked == [check.name]


@pytest.mark.parametrize("method", [None, lambda self: None, overrides_check("  ")(lambda self: None)])
def test_a_check_overridden_without_a_reason_fails(method):
    with pytest.raises(ConformanceError, match="overrides the check 'lora' without a reason"):
        type("TestMine", (PluginConformance,), {"test_lora": method})().test_overrides()


def test_a_check_overridden_with_a_reason_passes():
    method = overrides_check("the router draws lots")(lambda self: None)
    type("TestMine", (PluginConformance,), {"test_lora": method})().test_overrides()


def test_what_is_not_claimed_is_skipped_with_the_reason(llama):
    (subject,) = llama.subjects(PLAIN)
    subject.architecture = replace(
        subject.architecture,
        not_claimed={Capability.lora: "its layers are no Linear"},
        supported_encodings=(SupportedEncoding.float32,),
    )
    with pytest.raises(NotCheckedError, match="lora is not claimed: its layers are no Linear"):
        check_lora(llama.plugin(PLAIN), [subject])
    with pytest.raises(NotCheckedError, match="int8 is not claimed: supported_encodings"):
        check_int8(llama.plugin(PLAIN), [subject])


@pytest.mark.parametrize(("claim", "why"), [({"loar": "x"}, "unknown capabilities"), ({"lora": " "}, "no reason")])
def test_what_cannot_be_unclaimed(claim, why):
    with pytest.raises(ValueError, match=why):
        replace(pipezoo_architectures()[0], not_claimed=claim)


def test_a_reference_of_the_authors_own(tmp_path):
    bench = Bench(tmp_path, reference=PlainLlama)
    subjects = bench.subjects(PLAIN)
    check_weights(bench.plugin(PLAIN), subjects)
    check_log_probabilities(bench.plugin(PLAIN), subjects)
    check_lora(bench.plugin(PLAIN), subjects)
    with pytest.raises(NotCheckedError, match="saved in one file"):
        check_saved_in_shards(bench.plugin(PLAIN), subjects)


@pytest.mark.slow
def test_parts_that_see_images_are_left_out(llama):
    configs = {"plain": tiny_configs("gemma3")["plain"]}
    (subject,) = llama.subjects(configs)
    check_weights(llama.plugin(configs), [subject])
    check_lora(llama.plugin(configs), [subject])
    del subject.of_text
    subject.of_text = {parameter.data_ptr() for parameter in subject.reference.parameters()}
    with pytest.raises(ConformanceError, match=r"drops weights .*vision_tower"):
        check_weights(llama.plugin(configs), [subject])


@pytest.mark.parametrize(("model_type", "factor"), [("llama", 1.3), ("nemotron_h", 1.12)])
def test_what_rounding_does_not_explain_fails(llama, model_type, factor):
    """Of experts, too, of which rounding has a token choose others."""
    configs = {"plain": tiny_configs(model_type)["plain"]}
    (subject,) = llama.subjects(configs)
    check_int8(llama.plugin(configs), [subject])
    subject.reference.lm_head.weight.data.mul_(factor)  # behind the checkpoint's back
    subject._expected.clear()
    with pytest.raises(ConformanceError, match=r"in int8 the logits are not what is left .*its weights are rounded"):
        check_int8(llama.plugin(configs), [subject])


def test_a_plan_that_is_a_quarter_short_fails(llama, monkeypatch):
    subjects = llama.subjects(PLAIN)
    check_memory_plan(llama.plugin(PLAIN), subjects)
    model = subjects[0].architecture.pipeline_model
    estimate = model.estimate_activation_memory
    monkeypatch.setattr(model, "estimate_activation_memory", lambda *arguments: 3 * estimate(*arguments) // 4)
    with pytest.raises(ConformanceError, match="takes more memory than is planned"):
        check_memory_plan(llama.plugin(PLAIN), subjects)


def test_usual_numbers_become_telling_ones():
    made = sharpened({"model_type": "llama", "rope_theta": 10000.0, "hidden_size": 64, "num_attention_heads": 4})
    assert made["rms_norm_eps"] == 0.03
    assert made["rope_parameters"]["rope_theta"] == 700.0
    assert "rope_theta" not in made
    said = {"rms_norm_eps": 0.1, "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}
    assert sharpened({"model_type": "llama", **said}) == {"model_type": "llama", **said}


def test_configs_differ_in_one_switch_each():
    made = tiny_configs("qwen2")
    assert made["plain"].items() < made["tie_word_embeddings"].items() | {("tie_word_embeddings", False)}
    assert made["tie_word_embeddings"]["tie_word_embeddings"] is True
    with pytest.raises(LookupError, match="no config class of model_type 'nobodys'"):
        tiny_configs("nobodys")


@pytest.mark.parametrize(
    ("configs", "why"),
    [
        ({}, "no configs to check"),
        ({"plain": {}}, "says no model_type"),
        ({"plain": {"model_type": "nobodys"}}, "not one plugin serves model_type 'nobodys'"),
    ],
)
def test_configs_of_no_use(llama, configs, why):
    with pytest.raises(ConformanceError, match=why):
        llama.subjects(configs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("import torch\nAPI_VERSION = 2", r"imports what is heavy \(found: torch.*move it into pipezoo_architectures"),
        ("API_VERSION = 99", r"not written for this version .* API_VERSION = 99"),
        ("for _ in range(3 * 10**7):\n    pass\nAPI_VERSION = 2", r"takes long"),
    ],
)
def test_a_module_that_the_registry_cannot_list(wrong, why, tmp_path, monkeypatch):
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    bug = Bug("", "pipezoo_llama", "plugin.py", "API_VERSION = 2", wrong, "llama", "plain", "discovery", why)
    distribution = plant(bug, site)
    try:
        with pytest.raises(ConformanceError, match=why):
            check_discovery(Bench(tmp_path, distribution).plugin(PLAIN), [])
    finally:
        forget(distribution)


@pytest.mark.parametrize("check_in_a_process", [check_discovery, check_rediscovery])
def test_a_process_that_does_not_end_in_time_is_a_failure(check_in_a_process, llama, monkeypatch):
    monkeypatch.setattr(discovery_checks, "_TIMEOUT", 0.001)
    with pytest.raises(ConformanceError, match=r"not imported in time .* keep the machine busy, run the check again"):
        check_in_a_process(llama.plugin(PLAIN), [])


def check(*arguments):
    result = CliRunner().invoke(app, ["check", *arguments])
    return result.exit_code, result.output


def test_the_command_runs_the_checks():
    code, output = check("pipezoo-llama", "--only", "spec", "--only", "weights", "--json")
    assert code == 0
    assert [tuple(json.loads(line).values())[:3] for line in output.splitlines()] == [
        ("llama", "spec", "passed"),
        ("llama", "weights", "passed"),
    ]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["pipezoo-nobodys"], "no plugin 'pipezoo-nobodys' is installed"),
        (["pipezoo-llama", "--only", "everything"], "there is no such check"),
        (["pipezoo-llama", "--reference", "nobodys:Model"], "there is no such reference implementation"),
    ],
)
def test_what_the_command_refuses(arguments, why):
    code, output = check(*arguments)
    assert code == 1
    assert why in output


def test_the_command_tells_what_failed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    distribution = plant(next(bug for bug in BUGS if bug.name == "wrong eps"), tmp_path)
    try:
        code, output = check(distribution, "--only", "log_probabilities")
    finally:
        forget(distribution)
    assert code == 1
    assert "FAILED  llama  log_probabilities" in output
    assert "1 failed" in output
