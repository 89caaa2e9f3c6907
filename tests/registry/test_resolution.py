"""Which plugin a config.json leads to, and what is said about the others."""

import importlib.metadata

import pytest
from registry.plugin_distributions import install, working

from pipezoo.discovery.index import PluginIndex, PluginState
from pipezoo.discovery.resolution import resolve
from pipezoo_core.errors import (
    BrokenPluginError,
    IncompatiblePluginError,
    PluginConflictError,
    PluginError,
    PluginNotFoundError,
    UnsupportedModelError,
)

NONE = "`pipezoo plugins --available` lists all; docs/writing-a-plugin.md shows how to write one."
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("PIPEZOO_PLUGINS", raising=False)
    return tmp_path


def index_of(site):
    return PluginIndex(importlib.metadata.distributions(path=[str(site)]))


def reasons(resolution):
    return {candidate.plugin.distribution: (candidate.taken, candidate.reason) for candidate in resolution.candidates}


def explained(error):
    [note] = error.__notes__
    return note


def test_the_model_type_decides_and_every_plugin_has_its_reason(site):
    install(site, "pipezoo-llama", "llama")
    install(site, "pipezoo-mistral", "mistral")
    resolution = resolve(index_of(site), LLAMA)
    assert resolution.model_type == "llama"
    assert resolution.architectures == ("LlamaForCausalLM",)
    assert resolution.plugin.distribution == "pipezoo-llama"
    assert resolution.plugin.state is PluginState.loaded
    assert resolution.architecture.name == "LlamaForCausalLM"
    assert reasons(resolution) == {
        "pipezoo-llama": (True, "serves model_type 'llama'"),
        "pipezoo-mistral": (
            False,
            "serves 'mistral', not model_type 'llama' or architectures[0] 'LlamaForCausalLM'",
        ),
    }
    assert str(resolution).splitlines() == [
        "model_type 'llama', architectures LlamaForCausalLM: LlamaForCausalLM of pipezoo-llama 1.0",
        "taken     llama (pipezoo-llama 1.0): serves model_type 'llama'",
        "rejected  plugins that serve others: 1; `pipezoo plugins` lists them",
    ]


def test_only_the_chosen_plugin_is_imported(site):
    install(site, "pipezoo-llama", "llama")
    install(site, "other", "mistral", source="raise AssertionError")
    index = index_of(site)
    resolve(index, LLAMA)
    assert index.serving("mistral")[0].state is PluginState.available


@pytest.mark.parametrize(
    ("config", "where"),
    [
        ({"model_type": "mpt", "architectures": ["MPTForCausalLM"]}, "model_type 'mpt'"),
        ({"model_type": "unclaimed", "architectures": ["MPTForCausalLM"]}, "architectures[0] 'MPTForCausalLM'"),
        ({"architectures": ["MPTForCausalLM", "Other"]}, "architectures[0] 'MPTForCausalLM'"),
        ({"model_type": 7, "architectures": ["MPTForCausalLM"]}, "architectures[0] 'MPTForCausalLM'"),
        ({"model_type": "multi", "text_config": {"model_type": "mpt"}}, "text_config.model_type 'mpt'"),
        ({"text_config": {"architectures": ["MPTForCausalLM"]}}, "text_config.architectures[0] 'MPTForCausalLM'"),
    ],
)
def test_the_names_of_a_config_are_tried_in_order(site, config, where):
    source = working("'MPTForCausalLM', 'mpt'")
    install(site, "pipezoo-replit", "mpt", "MPTForCausalLM", source=source)
    resolution = resolve(index_of(site), config)
    [taken] = [candidate for candidate in resolution.candidates if candidate.taken]
    assert taken.reason == f"serves {where}"


def test_the_config_is_only_read(site):
    install(site, "pipezoo-llama", "llama")
    config = {**LLAMA, "_attn_implementation_internal": "org/code", "auto_map": {"AutoConfig": "x.py"}}
    before = {**config}
    resolve(index_of(site), config)
    assert config == before


def test_without_architectures_the_only_one_of_the_type_is_taken(site):
    source = working("'LlamaForCausalLM', 'llama'", "'MistralForCausalLM', 'mistral'")
    install(site, "both", "llama", "mistral", source=source)
    assert resolve(index_of(site), {"model_type": "mistral"}).architecture.name == "MistralForCausalLM"


def test_without_architectures_two_of_the_type_are_too_many(site):
    install(site, "both", "llama", source=working("'A', 'llama'", "'B', 'llama'"))
    with pytest.raises(UnsupportedModelError, match=r"model_type 'llama' means \(found: A, B; allowed: A, B\)"):
        resolve(index_of(site), {"model_type": "llama"})
    assert resolve(index_of(site), {"model_type": "llama", "architectures": ["B"]}).architecture.name == "B"


def test_several_names_of_one_architecture_are_not_several_architectures(site):
    install(site, "one", "llama", "old_llama", source=working("'A', 'llama', 'old_llama', aliases=('B', 'C')"))
    index = index_of(site)
    for model_type in ("llama", "old_llama"):
        for named in ({}, {"architectures": ["A"]}, {"architectures": ["C"]}):
            assert resolve(index, {"model_type": model_type, **named}).architecture.name == "A"
    with pytest.raises(UnsupportedModelError, match="found: D; allowed: A, B, C"):
        resolve(index, {"model_type": "llama", "architectures": ["D"]})


def test_an_architecture_the_plugin_does_not_serve_is_refused(site):
    install(site, "pipezoo-llama", "llama")
    config = {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}
    with pytest.raises(
        UnsupportedModelError, match="found: LlamaForSequenceClassification; allowed: LlamaForCausalLM"
    ) as caught:
        resolve(index_of(site), config)
    assert explained(caught.value).startswith("rejected  llama (pipezoo-llama 1.0): serves model_type 'llama', but: ")


def test_a_composite_model_is_not_run_as_its_text_part(site):
    install(site, "pipezoo-llama", "llama")
    config = {"model_type": "llava", "architectures": ["LlavaModel"], "text_config": {"model_type": "llama"}}
    with pytest.raises(UnsupportedModelError, match="found: LlavaModel"):
        resolve(index_of(site), config)


def test_a_probe_may_refuse_with_its_reason(site):
    probe = "probe=lambda config: 'clip_qkv is not done' if config.get('clip_qkv') else None"
    install(site, "pipezoo-llama", "llama", source=working(f"'LlamaForCausalLM', 'llama', {probe}"))
    index = index_of(site)
    with pytest.raises(
        UnsupportedModelError, match=r"'pipezoo-llama' refuses this model \(found: clip_qkv is not done"
    ):
        resolve(index, {**LLAMA, "clip_qkv": 8})
    assert resolve(index, LLAMA).plugin.distribution == "pipezoo-llama"


def test_a_probe_that_raises_makes_the_plugin_broken(site):
    install(site, "some-plugin", "llama", source=working("'LlamaForCausalLM', 'llama', probe=lambda c: c['missing']"))
    with pytest.raises(BrokenPluginError, match=r"'some-plugin'.*KeyError") as caught:
        resolve(index_of(site), LLAMA)
    assert isinstance(caught.value.__cause__, KeyError)


def test_no_plugin_says_what_is_installed_and_what_to_install(site):
    install(site, "pipezoo-mistral", "mistral")
    install(site, "pipezoo-replit", "mpt", "replit_lm")
    with pytest.raises(PluginNotFoundError) as caught:
        resolve(index_of(site), LLAMA)
    assert str(caught.value) == (
        "no plugin for model_type 'llama' (installed: replit_lm, mistral, mpt). Try: pip install pipezoo-llama"
    )
    assert explained(caught.value) == "rejected  plugins that serve others: 2; `pipezoo plugins` lists them"


def test_what_is_said_stays_short_however_much_is_installed(site):
    types = [f"type_{number}" for number in range(40)]
    install(site, "many", *types, source=working(", ".join(map(repr, ("A", *types)))))
    for number in range(20):
        install(site, f"other-{number}", f"other_{number}")
    with pytest.raises(PluginNotFoundError) as caught:
        resolve(index_of(site), {"model_type": "tipe_17"})
    assert str(caught.value).startswith("no plugin for model_type 'tipe_17' (installed: type_17, ")
    assert f"and 56 more). Did you mean 'type_17'? {NONE}" in str(caught.value)
    for text in (explained(caught.value), str(resolve(index_of(site), {"model_type": "type_3"}))):
        assert max(map(len, text.splitlines())) < 120


@pytest.mark.parametrize(
    ("config", "cure"),
    [
        ({"model_type": "mistral"}, "Try: pip install pipezoo-mistral"),
        ({"model_type": "mpt"}, "Try: pip install pipezoo-replit"),
        (
            {"model_type": "llamma"},
            f"Did you mean 'llama'? {NONE}",
        ),
        ({"model_type": "zamba"}, NONE),
        ({"architectures": ["ZambaModel"]}, NONE),
        (
            {"model_type": "zamba", "text_config": {"model_type": "llama"}},
            NONE,
        ),
    ],
)
def test_the_cure_fits_the_missing_type(site, config, cure):
    with pytest.raises(PluginNotFoundError) as caught:
        resolve(index_of(site), config)
    assert str(caught.value).endswith(f"(installed: none). {cure}")
    assert explained(caught.value) == "No plugin is installed."


@pytest.mark.parametrize(
    "config", [{}, {"model_type": ""}, {"architectures": []}, {"architectures": "LlamaForCausalLM"}]
)
def test_a_config_that_names_nothing_is_refused(site, config):
    with pytest.raises(UnsupportedModelError, match="neither a model_type nor architectures"):
        resolve(index_of(site), config)


def test_two_plugins_for_one_type_are_a_conflict_with_a_cure(site):
    install(site, "one", "llama")
    install(site, "two", "llama")
    with pytest.raises(PluginConflictError) as caught:
        resolve(index_of(site), LLAMA)
    message = str(caught.value)
    assert "model_type 'llama' (found: one, two)" in message
    assert 'registry.load(..., plugin="one")' in message
    assert "PIPEZOO_PLUGINS=llama=one" in message
    assert explained(caught.value).count("no choice could be made") == 2


def test_a_pin_ends_the_conflict(site, monkeypatch):
    install(site, "one", "llama")
    install(site, "two", "llama")
    monkeypatch.setenv("PIPEZOO_PLUGINS", "llama=two")
    assert reasons(resolve(index_of(site), LLAMA)) == {
        "one": (False, "PIPEZOO_PLUGINS pins 'llama' to 'two'"),
        "two": (True, "PIPEZOO_PLUGINS pins 'llama' to it"),
    }


def test_an_explicit_plugin_beats_the_pin(site, monkeypatch):
    install(site, "One.Plugin", "llama")
    install(site, "two", "llama")
    monkeypatch.setenv("PIPEZOO_PLUGINS", "llama=two")
    resolution = resolve(index_of(site), LLAMA, plugin="one_plugin")
    assert reasons(resolution) == {
        "one-plugin": (True, "asked for by plugin='one_plugin'"),
        "two": (False, "serves model_type 'llama', but 'one-plugin' is taken: asked for by plugin='one_plugin'"),
    }


def test_a_pin_of_the_architecture_beats_the_model_type(site, monkeypatch):
    install(site, "one", "llama")
    install(site, "two", "LlamaForCausalLM", source=working("'LlamaForCausalLM', 'llama'"))
    assert resolve(index_of(site), LLAMA).plugin.distribution == "one"
    monkeypatch.setenv("PIPEZOO_PLUGINS", "LlamaForCausalLM=two")
    assert resolve(index_of(site), LLAMA).plugin.distribution == "two"


def test_an_explicit_plugin_serves_a_type_it_does_not_claim_by_the_architecture(site):
    install(site, "pipezoo-llama", "llama")
    config = {"model_type": "my_llama", "architectures": ["LlamaForCausalLM"]}
    with pytest.raises(PluginNotFoundError):
        resolve(index_of(site), config)
    assert resolve(index_of(site), config, plugin="pipezoo-llama").architecture.name == "LlamaForCausalLM"


def test_an_explicit_plugin_must_be_installed(site):
    install(site, "pipezoo-llama", "llama")
    with pytest.raises(PluginNotFoundError, match=r"called 'nothing' \(allowed: pipezoo-llama\). Check the spelling"):
        resolve(index_of(site), LLAMA, plugin="nothing")
    with pytest.raises(PluginNotFoundError, match=r"Try: pip install pipezoo-mistral"):
        resolve(index_of(site), LLAMA, plugin="pipezoo_mistral")
    for odd in (3, b"pipezoo-llama", "", "a" * 10**6, "\ud800"):
        with pytest.raises(PluginNotFoundError, match="no plugin is called"):
            resolve(index_of(site), LLAMA, plugin=odd)


def test_a_pin_on_what_is_not_installed_is_never_passed_over(site, monkeypatch):
    install(site, "pipezoo-llama", "llama")
    monkeypatch.setenv("PIPEZOO_PLUGINS", "llama=nothing")
    with pytest.raises(PluginNotFoundError, match=r"pins 'llama' to 'nothing'.*found: pipezoo-llama"):
        resolve(index_of(site), LLAMA)


def test_a_disabled_plugin_is_as_good_as_absent(site, monkeypatch):
    install(site, "one", "llama")
    install(site, "two", "llama")
    monkeypatch.setenv("PIPEZOO_PLUGINS", "-one")
    assert reasons(resolve(index_of(site), LLAMA))["one"] == (False, "disabled by PIPEZOO_PLUGINS")
    with pytest.raises(PluginNotFoundError, match="'one' is disabled"):
        resolve(index_of(site), LLAMA, plugin="one")
    monkeypatch.setenv("PIPEZOO_PLUGINS", "-one,-two")
    with pytest.raises(PluginNotFoundError, match=r"\(installed: none\). Take '-one' out of PIPEZOO_PLUGINS"):
        resolve(index_of(site), LLAMA)


def test_an_incompatible_plugin_leaves_the_type_to_another(site):
    install(site, "one", "llama", requires=("pipezoo-core>=99",))
    install(site, "two", "llama")
    taken, reason = reasons(resolve(index_of(site), LLAMA))["one"]
    assert not taken
    assert reason.startswith("needs pipezoo-core>=99")


def test_an_incompatible_plugin_alone_says_so(site):
    install(site, "one", "llama", requires=("pipezoo-core>=99",))
    with pytest.raises(IncompatiblePluginError, match=r"'one' 1.0 needs pipezoo-core>=99") as caught:
        resolve(index_of(site), LLAMA)
    assert "serves model_type 'llama', but: " in explained(caught.value)


def test_there_is_no_silent_way_round_a_broken_plugin(site):
    install(site, "one", "llama", source="1 / 0")
    install(site, "two", "LlamaForCausalLM")
    index = index_of(site)
    for _ in range(2):
        with pytest.raises(BrokenPluginError, match="ZeroDivisionError") as caught:
            resolve(index, LLAMA)
        assert "rejected  llama (one 1.0): serves model_type 'llama', but: " in explained(caught.value)


STRANGER = {
    "missing": lambda site: None,
    "broken": lambda site: install(site, "stranger", "llama", source="1 / 0"),
    "no hook": lambda site: install(site, "stranger", "llama", source="API_VERSION = 1"),
    "old": lambda site: install(site, "stranger", "llama", source="API_VERSION = 0"),
    "requirements": lambda site: install(site, "stranger", "llama", requires=("pipezoo-core>=99",)),
    "probe": lambda site: install(
        site, "stranger", "llama", source=working("'LlamaForCausalLM', 'llama', probe=lambda c: c['missing']")
    ),
}


@pytest.mark.parametrize("how", STRANGER)
@pytest.mark.parametrize("chosen", ["explicitly", "by a pin"])
def test_nobody_is_told_to_install_what_pipezoo_does_not_publish(how, chosen, site, monkeypatch):
    STRANGER[how](site)
    if chosen == "by a pin":
        monkeypatch.setenv("PIPEZOO_PLUGINS", "llama=stranger")
    with pytest.raises(PluginError) as caught:
        resolve(index_of(site), LLAMA, plugin="stranger" if chosen == "explicitly" else None)
    assert caught.value.cure
    assert "pip install" not in str(caught.value)
