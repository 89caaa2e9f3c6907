"""`pipezoo doctor`, and what else tells of plugins in every state."""

import importlib.metadata
import json
import os
import subprocess
import sys

import pytest
import torch
from registry.plugin_distributions import install, working
from typer.testing import CliRunner

from pipezoo.cli.main import app
from pipezoo.diagnosis import surroundings, versions
from pipezoo.diagnosis.finding import Status
from pipezoo.diagnosis.surroundings import hub_findings, kernel_findings, torch_findings
from pipezoo.diagnosis.versions import version_findings
from pipezoo.discovery.index import PluginIndex
from pipezoo_core.native import variants

WIDE = {**os.environ, "COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}


def pipezoo(*arguments):
    return CliRunner().invoke(app, list(arguments), env=WIDE)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder for plugins, which are then the only ones."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("PIPEZOO_PLUGINS", raising=False)

    def index():
        return PluginIndex(importlib.metadata.distributions(path=[str(tmp_path)]))

    monkeypatch.setattr("pipezoo.discovery.index.PluginIndex", index)
    return tmp_path


def doctor():
    """The exit code, the findings about plugins by name, and the rows of plugins by distribution."""
    result = pipezoo("doctor", "--json")
    said = json.loads(result.stdout)
    assert said["is_broken"] == bool(result.exit_code)
    findings = {finding["name"]: finding for finding in said["findings"]["plugins"]}
    return result.exit_code, findings, {row["distribution"]: row for row in said["plugins"]}


def test_plugins_that_work(site):
    install(site, "some-plugin", "llama", "mpt")
    code, findings, rows = doctor()
    assert (code, findings) == (0, {})
    assert rows["some-plugin"]["state"] == "loaded"
    assert "Nothing is broken." in pipezoo("doctor").stdout


def test_every_state_has_its_reason_and_cure(site, monkeypatch):
    install(site, "good-plugin", "llama")
    install(site, "raising-plugin", "mpt", source="raise RuntimeError('its own fault')")
    install(site, "old-plugin", "opt", requires=("pipezoo-core<0.1",))
    source = working("'BloomForCausalLM', 'bloom'").replace("API_VERSION = 1", "API_VERSION = 0")
    install(site, "ancient-plugin", "bloom", source=source)
    install(site, "unwanted-plugin", "phi")
    install(site, "other-plugin", "llama")
    monkeypatch.setenv("PIPEZOO_PLUGINS", "-unwanted-plugin,llama=good-plugin,-nonesuch")
    code, findings, rows = doctor()
    assert code == 1
    assert {name: (row["state"], row["cure"]) for name, row in rows.items()} == {
        "good-plugin": ("loaded", None),
        "raising-plugin": ("broken", instead_of("raising-plugin")),
        "old-plugin": ("incompatible", instead_of("old-plugin")),
        "ancient-plugin": ("incompatible", instead_of("ancient-plugin")),
        "unwanted-plugin": ("disabled", "Take '-unwanted-plugin' out of PIPEZOO_PLUGINS."),
        "other-plugin": ("shadowed", "Pin it instead: PIPEZOO_PLUGINS=llama=other-plugin"),
    }
    assert all(row["reason"] for name, row in rows.items() if name != "good-plugin")
    assert "its own fault" in findings["raising-plugin"]["value"]
    assert "needs pipezoo-core<0.1" in findings["old-plugin"]["value"]
    assert "API_VERSION = 0" in findings["ancient-plugin"]["value"]
    assert findings["PIPEZOO_PLUGINS"]["status"] == "note"
    assert "'-nonesuch' matches nothing" in findings["PIPEZOO_PLUGINS"]["value"]
    assert set(findings) == {"raising-plugin", "old-plugin", "ancient-plugin", "PIPEZOO_PLUGINS"}
    shown = pipezoo("doctor")
    assert shown.exit_code == 1
    assert all(row["cure"] in shown.stdout for row in rows.values() if row["cure"])
    assert "Something is broken" in shown.stdout


def instead_of(plugin):
    return f"Install a release of it that fits pipezoo-core, or go without it: PIPEZOO_PLUGINS=-{plugin}"


def test_two_plugins_for_one_type_are_broken(site):
    """A load of that type would fail."""
    install(site, "some-plugin", "llama")
    install(site, "other-plugin", "llama")
    code, findings, _ = doctor()
    assert code == 1
    assert findings["llama"]["value"] == "served by other-plugin and some-plugin"
    assert findings["llama"]["cure"] == "Choose one: PIPEZOO_PLUGINS=llama=other-plugin"


def test_no_plugin_is_worth_a_note(site):
    code, findings, rows = doctor()
    assert (code, rows) == (0, {})
    assert findings["plugins"]["cure"] == "Try: pip install pipezoo-llama"


def only(findings):
    [finding] = findings
    return finding


def by_name(findings):
    return {finding.name: finding for finding in findings}


def test_kernels(monkeypatch):
    usable = only(kernel_findings())
    if variants.obstacle_to(torch.device("cpu"), torch.float32) is None:
        assert (usable.status, variants.VARIANT in usable.value) == (Status.fine, True)
    monkeypatch.setattr(surroundings.importlib.metadata, "version", lambda name: "0.0.9")
    monkeypatch.setattr(variants, "obstacle_to", lambda *_: "it is of another version (interface 4, not 5)")
    other = only(kernel_findings())
    assert (other.status, "interface 4" in other.value) == (Status.broken, True)
    assert "pip install" in other.cure
    monkeypatch.setattr(variants, "obstacle_to", lambda *_: "this CPU lacks avx2")
    assert only(kernel_findings()).status is Status.note

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(surroundings.importlib.metadata, "version", missing)
    assert only(kernel_findings()).cure.endswith("pip install 'pipezoo-core[kernels]'")


def test_versions_are_held_to_what_is_required(monkeypatch):
    assert all(finding.status is Status.fine for finding in version_findings())
    requires = {
        "pipezoo": ["typer>=99", "nonesuch-package>=1", "extra-one; extra == 'x'"],
        "pipezoo-core": ["typer<100"],
    }
    monkeypatch.setattr(versions.importlib.metadata, "requires", requires.get)
    found = by_name(version_findings())
    assert found["typer"].status is found["nonesuch-package"].status is Status.broken
    assert found["typer"].cure == "Try: pip install 'typer<100,>=99'"
    assert found["nonesuch-package"].value == "not installed, >=1 is required"
    assert "extra-one" not in found


def test_threads(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    for count, status in ((1, Status.note), (2, Status.fine), (3, Status.note)):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        threads = by_name(torch_findings())["threads"]
        assert (threads.status, threads.value) == (status, f"{count}, on 2 CPUs")


def test_a_torch_that_cannot_be_imported_is_broken(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert only(torch_findings()).status is Status.broken
    assert only(kernel_findings()).status is Status.note


def test_the_cache(tmp_path, monkeypatch):
    def cache(folder):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
        return by_name(hub_findings())["cache"]

    (tmp_path / "models--org--model").mkdir()
    (tmp_path / "file").touch()
    assert "models in it: 1," in cache(tmp_path).value
    assert "made at the first download" in cache(tmp_path / "new/one").value
    assert cache(tmp_path / "file/hub").status is Status.broken
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert cache(tmp_path).status is Status.broken


def test_plugins_as_json():
    result = subprocess.run([sys.executable, "-m", "pipezoo", "plugins", "--json"], capture_output=True, check=True)
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert rows["llama"] == {
        "name": "llama",
        "distribution": "pipezoo-llama",
        "version": importlib.metadata.version("pipezoo-llama"),
        "module": "pipezoo_llama.plugin",
        "state": "available",
        "reason": None,
        "cure": None,
    }


def test_why_as_json(tiny_folder, tmp_path):
    said = json.loads(pipezoo("why", str(tiny_folder), "--json").stdout)
    assert (said["plugin"], said["architecture"]) == ("pipezoo-llama", "LlamaForCausalLM")
    [taken] = [candidate for candidate in said["candidates"] if candidate["taken"]]
    assert taken["name"] == "llama"
    (tmp_path / "config.json").write_text('{"model_type": "lama"}')
    result = pipezoo("why", str(tmp_path), "--plugin", "nonesuch", "--json")
    assert result.exit_code == 1
    failed = json.loads(result.stdout)
    assert failed["plugin"] is None
    assert failed["error"]["type"] == "PluginNotFoundError"
    assert failed["error"]["what"] == "no plugin is called 'nonesuch'"
    assert failed["candidates"]
