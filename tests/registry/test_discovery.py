"""The installed plugins, with real distributions on sys.path."""

import importlib.metadata
import os
import subprocess
import sys
import textwrap

import pytest
from registry.plugin_distributions import install, working

from pipezoo.discovery.index import PluginIndex, PluginState
from pipezoo_core.errors import (
    BrokenPluginError,
    IncompatiblePluginError,
    InvalidSettingError,
    PluginNotFoundError,
)


@pytest.fixture
def site(tmp_path, monkeypatch):
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delenv("PIPEZOO_PLUGINS", raising=False)
    return folder


def index_of(*folders):
    return PluginIndex(importlib.metadata.distributions(path=[str(folder) for folder in folders]))


def only(index):
    [plugin] = index.plugins()
    return plugin


def broken(site, source, **more):
    install(site, "some-plugin", "llama", source=textwrap.dedent(source), **more)
    index = index_of(site)
    with pytest.raises(BrokenPluginError) as caught:
        index.load(only(index))
    assert only(index).state is PluginState.broken
    return index, caught.value


def test_every_claim_is_listed_with_its_distribution(site):
    module = install(site, "Some_Plugin", "mpt", "MPTForCausalLM", version="2.1")
    first, second = index_of(site).plugins()
    assert (first.name, second.name) == ("MPTForCausalLM", "mpt")
    assert (second.distribution, second.version, second.module) == ("some-plugin", "2.1", module)
    assert (second.state, second.reason) == (PluginState.available, None)


def test_the_environment_is_where_it_looks_by_default(site):
    install(site, "some-plugin", "llama_of_a_test")
    assert "llama_of_a_test" in [plugin.name for plugin in PluginIndex().plugins()]


def test_listing_imports_neither_torch_nor_transformers_nor_a_plugin(site):
    install(site, "some-plugin", "llama", source="raise RuntimeError")
    program = """
        import sys
        from pipezoo.discovery.index import PluginIndex
        assert "some-plugin" in [plugin.distribution for plugin in PluginIndex().plugins()]
        heavy = {"torch", "transformers", "pydantic", "huggingface_hub", "numpy"}
        print(sorted(name for name in sys.modules if name in heavy or name.startswith("pipezoo_test")))
    """
    paths = [str(site), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_loading_returns_the_architectures_and_is_done_once(site):
    install(site, "some-plugin", "mpt", "replit_lm")
    index = index_of(site)
    [architecture] = index.load(index.serving("mpt")[0])
    assert architecture.name == "MptForCausalLM"
    assert index.load(index.serving("replit_lm")[0])[0] is architecture
    assert {plugin.state for plugin in index.plugins()} == {PluginState.loaded}


def test_the_same_distribution_twice_is_no_conflict(site, tmp_path):
    install(site, "some-plugin", "llama")
    install(tmp_path / "old", "some-plugin", "llama", version="0.9", metadata_folder="egg-info")
    plugin = only(index_of(site, tmp_path / "old"))
    assert plugin.version == "1.0"


def test_two_distributions_with_one_type_are_both_listed(site):
    install(site, "one", "llama")
    install(site, "two", "llama")
    assert [plugin.distribution for plugin in index_of(site).serving("llama")] == ["one", "two"]


@pytest.mark.parametrize(
    "requirement", ["pipezoo-core>=99", "Pipezoo_Core<0.0.1", "pipezoo-core==99; python_version>'3'"]
)
def test_a_plugin_for_another_core_is_incompatible_before_it_is_imported(site, requirement):
    module = install(site, "some-plugin", "llama", requires=(requirement,))
    index = index_of(site)
    assert only(index).state is PluginState.incompatible
    assert "is installed" in only(index).reason
    with pytest.raises(IncompatiblePluginError, match=r"needs .* but pipezoo-core .* is installed"):
        index.load(only(index))
    assert module not in sys.modules


@pytest.mark.parametrize(
    "requirements", [(), ("pipezoo-core>=99; extra == 'future'",), ("pipezoo-core>=99; python_version<'3'", "numpy<0")]
)
def test_requirements_that_do_not_apply_are_not_held_against_it(site, requirements):
    install(site, "some-plugin", "llama", requires=requirements)
    assert only(index_of(site)).state is PluginState.available


def test_requirements_that_cannot_be_read_make_it_incompatible(site):
    install(site, "some-plugin", "llama", requires=("pipezoo-core >>> 1",))
    assert "cannot be read" in only(index_of(site)).reason


@pytest.mark.parametrize("line", ["", "API_VERSION = 99", "API_VERSION = '1'", "API_VERSION = 0", "API_VERSION = None"])
def test_the_api_version_must_be_stated_and_known(site, line):
    install(site, "some-plugin", "llama", source=working("'A', 'llama'").replace("API_VERSION = 1", line))
    index = index_of(site)
    with pytest.raises(
        IncompatiblePluginError,
        match=r"API_VERSION.*allowed: 2, 1.*Install a release of it.*PIPEZOO_PLUGINS=-some-plugin",
    ):
        index.load(only(index))
    assert only(index).state is PluginState.incompatible
    assert "API_VERSION" in only(index).reason


def test_a_plugin_that_raises_is_broken_with_its_traceback(site):
    index, error = broken(site, "def fail():\n    raise OSError('no such library')\nfail()\n")
    assert isinstance(error.__cause__, OSError)
    assert "'some-plugin'" in str(error)
    assert "no such library" in str(error)
    assert "Traceback" in only(index).reason
    assert "in fail" in only(index).reason


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import a_package_that_is_not_there", "No module named"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def nothing(:", "SyntaxError"),
        ("API_VERSION = 1", "no function pipezoo_architectures marked @hookimpl"),
        (working().replace("pipezoo_architectures", "pipezoo_architecture"), "unknown hook 'pipezoo_architecture'"),
        (working().replace("_architectures()", "_architectures(config)"), "can not be found in the hookspec"),
        (working().replace("return []", "return None"), "returned None"),
        (working(), r"returned \[\] instead"),
        (working("'A', 'llama'").replace("return [", "return iter([").replace(")]", ")])"), "instead of a list"),
        (working().replace("[]", "['LlamaForCausalLM']"), "'LlamaForCausalLM' among its architectures"),
        (working().replace("return []", "1 / 0"), "ZeroDivisionError"),
    ],
)
def test_what_a_broken_plugin_did_wrong_is_said(site, source, message):
    _, error = broken(site, source)
    assert error.__cause__ is not None
    with pytest.raises(BrokenPluginError, match=message):
        raise error


def test_a_broken_plugin_does_not_break_another(site):
    install(site, "good-plugin", "mistral")
    index, _ = broken_beside(site)
    [architecture] = index.load(index.serving("mistral")[0])
    assert architecture.model_types == ("mistral",)


def broken_beside(site):
    install(site, "bad-plugin", "llama", source="from pipezoo_core.hookspecs import hookimpl\n1 / 0\n")
    index = index_of(site)
    bad = index.serving("llama")[0]
    with pytest.raises(BrokenPluginError):
        index.load(bad)
    return index, bad


def test_a_failed_load_can_be_tried_again(site):
    index, bad = broken_beside(site)
    assert bad.module not in sys.modules
    assert bad.module.partition(".")[0] not in sys.modules
    with pytest.raises(BrokenPluginError):
        index.load(bad)
    (site / bad.module.partition(".")[0] / "plugin.py").write_text(working("'LlamaForCausalLM', 'llama'"))
    [architecture] = index.load(bad)
    assert architecture.name == "LlamaForCausalLM"
    assert index.serving("llama")[0].state is PluginState.loaded
    assert index.serving("llama")[0].reason is None


def test_an_interrupt_is_not_taken_for_a_broken_plugin(site):
    install(site, "some-plugin", "llama", source="raise KeyboardInterrupt")
    index = index_of(site)
    with pytest.raises(KeyboardInterrupt):
        index.load(only(index))
    assert only(index).state is PluginState.available


@pytest.mark.parametrize("text", ["[pipezoo.plugins]\nllama\n", "[pipezoo.plugins]\nllama = not a module !\n"])
def test_unreadable_metadata_is_a_row_of_its_own(site, text):
    install(site, "bad-plugin", "llama")
    (site / "bad_plugin-1.0.dist-info" / "entry_points.txt").write_text(text)
    install(site, "good-plugin", "mistral")
    bad, good = index_of(site).plugins()
    assert (bad.name, bad.distribution, bad.state) == ("?", "bad-plugin", PluginState.broken)
    assert "Traceback" in bad.reason
    assert (good.name, good.state) == ("mistral", PluginState.available)


def test_a_distribution_without_a_name_is_a_row_of_its_own(site):
    install(site, "bad-plugin", "llama")
    (site / "bad_plugin-1.0.dist-info" / "METADATA").write_text("Version: 1\n")
    assert only(index_of(site)).state is PluginState.broken


def test_a_disabled_plugin_is_listed_and_never_imported(site, monkeypatch):
    monkeypatch.setenv("PIPEZOO_PLUGINS", "-Some.Plugin")
    module = install(site, "some-plugin", "llama")
    index = index_of(site)
    assert only(index).state is PluginState.disabled
    with pytest.raises(PluginNotFoundError, match=r"disabled by PIPEZOO_PLUGINS.*Take '-some-plugin' out"):
        index.load(only(index))
    assert module not in sys.modules


def test_a_pin_shadows_the_others(site, monkeypatch):
    monkeypatch.setenv("PIPEZOO_PLUGINS", " llama = Two ,")
    with pytest.raises(InvalidSettingError):
        index_of(site).plugins()
    monkeypatch.setenv("PIPEZOO_PLUGINS", " llama = Two ")
    install(site, "one", "llama", "mistral")
    install(site, "two", "llama")
    states = {(plugin.distribution, plugin.name): plugin.state for plugin in index_of(site).plugins()}
    assert states == {
        ("one", "llama"): PluginState.shadowed,
        ("one", "mistral"): PluginState.available,
        ("two", "llama"): PluginState.available,
    }


@pytest.mark.parametrize(
    "text",
    ["llama", "llama=", "=one", "-", ",", "llama=one,llama=two", "llama=one,-one", "llama=on e", "--one", "a=-b"],
)
def test_a_bad_setting_is_an_error_with_an_example(site, monkeypatch, text):
    monkeypatch.setenv("PIPEZOO_PLUGINS", text)
    with pytest.raises(InvalidSettingError, match=r"PIPEZOO_PLUGINS: .*allowed: type=distribution.*For instance"):
        index_of(site).plugins()


def test_nothing_is_read_before_it_is_needed_and_refreshing_reads_anew(site, monkeypatch):
    monkeypatch.setenv("PIPEZOO_PLUGINS", "nonsense")
    index = PluginIndex()
    monkeypatch.delenv("PIPEZOO_PLUGINS")
    assert not index.serving("llama_of_a_test")
    install(site, "some-plugin", "llama_of_a_test")
    assert not index.serving("llama_of_a_test")
    index.refresh()
    [plugin] = index.serving("llama_of_a_test")
    [architecture] = index.load(plugin)
    index.refresh()
    assert index.load(plugin) == (architecture,)
    assert index.serving("llama_of_a_test")[0].state is PluginState.loaded


def test_blank_settings_are_none_and_the_same_pin_twice_is_one(site, monkeypatch):
    monkeypatch.setenv("PIPEZOO_PLUGINS", "  ")
    assert index_of(site).setting.pins == {}
    monkeypatch.setenv("PIPEZOO_PLUGINS", "llama=one,llama=One")
    assert index_of(site).setting.pins == {"llama": "one"}


@pytest.mark.parametrize("version", [1, 2])
def test_a_plugin_of_this_version_or_the_one_before_is_loaded(site, version):
    source = working("'A', 'llama'").replace("API_VERSION = 1", f"API_VERSION = {version}")
    install(site, "some-plugin", "llama", source=source)
    index = index_of(site)
    assert [architecture.name for architecture in index.load(only(index))] == ["A"]


@pytest.mark.parametrize("name", ["*.py", "*", "../x.json", "deep/x.json", "x.bin", "x.json\n", ".json", "x.PT", ""])
def test_files_that_a_plugin_cannot_ask_for(site, name):
    install(site, "some-plugin", "llama", source=working(f"'A', 'llama', files=('good.tiktoken', {name!r})"))
    index = index_of(site)
    with pytest.raises(BrokenPluginError, match=r"files of A that are not downloaded"):
        index.load(only(index))
