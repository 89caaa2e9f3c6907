"""Items of PIPEZOO_PLUGINS that match nothing are told, once."""

import importlib.metadata
import logging

import pytest
from registry.plugin_distributions import install

from pipezoo.discovery.index import PluginIndex


@pytest.fixture
def unmatched(tmp_path, monkeypatch):
    """Returns what is said of a setting, where some-plugin serves llama and mpt."""
    install(tmp_path, "some-plugin", "llama", "mpt")

    def said(setting):
        monkeypatch.setenv("PIPEZOO_PLUGINS", setting)
        return PluginIndex(importlib.metadata.distributions(path=[str(tmp_path)])).unmatched()

    return said


@pytest.mark.parametrize("setting", ["", "-some-plugin", "-Some_Plugin", "llama=some-plugin,mpt=some.plugin"])
def test_what_matches_is_not_told(unmatched, setting):
    assert unmatched(setting) == []


def test_each_item_that_matches_nothing_is_told(unmatched):
    start = "PIPEZOO_PLUGINS:"
    assert unmatched("llama=nothing-like-it,-some-plugn,qwen2=some-plugin,mpt=some-plugin") == [
        f"{start} '-some-plugn' matches nothing, no plugin 'some-plugn' is installed; did you mean 'some-plugin'?",
        f"{start} 'llama=nothing-like-it' matches nothing, no plugin 'nothing-like-it' is installed",
        f"{start} 'qwen2=some-plugin' matches nothing, some-plugin serves llama, mpt",
    ]


def test_they_are_logged_when_the_plugins_are_read(tmp_path, monkeypatch, caplog):
    install(tmp_path, "some-plugin", "llama")
    monkeypatch.setenv("PIPEZOO_PLUGINS", "-other-plugin")
    index = PluginIndex(importlib.metadata.distributions(path=[str(tmp_path)]))
    with caplog.at_level(logging.WARNING, "pipezoo"):
        index.plugins()
        index.plugins()
    [record] = caplog.records
    assert "'-other-plugin' matches nothing" in record.message
