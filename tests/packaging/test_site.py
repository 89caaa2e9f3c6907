"""The documentation builds as a site, offline and without a warning, and its reference is complete."""

import os
import pkgutil
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import pipezoo_core

ROOT = Path(__file__).parents[2]
PACKAGES = [f"pipezoo_core.{module.name}" for module in pkgutil.iter_modules(pipezoo_core.__path__) if module.ispkg]
MODULES = [
    "pipezoo.registry",
    "pipezoo_core.architecture",
    "pipezoo_core.errors",
    "pipezoo_core.hookspecs",
    "pipezoo_core.request",
    "pipezoo_core.sampling_params",
]


def build(config, site):
    """Builds the site; whatever asks for an address finds nobody there."""
    nobody = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--config-file", config, "--site-dir", site],
        env={**os.environ, **nobody, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    built = build(ROOT / "mkdocs.yml", folder)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(site):
    """A function that is called like its module is there under the module's name."""
    pages = "".join(page.read_text() for page in (site / "reference").glob("*.html"))
    explained = set(re.findall(r'id="(pipezoo[\w.]*)"', pages))
    public = {f"{name}.{member}" for name in [*PACKAGES, *MODULES] for member in import_module(name).__all__}
    missing = public - explained
    assert {name for name in missing if f"{name}.{name.rpartition('.')[2]}" not in explained} == set()


@pytest.mark.slow
def test_its_pages_load_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=[\"']?([^\s\"'>]+)", page.read_text())
        loaded += re.findall(r"<link[^>]*\shref=[\"']?([^\s\"'>]+)", page.read_text())
        assert loaded
        assert [address for address in loaded if "//" in address] == [], page


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[there](nowhere.md)", "nowhere.md"),
        ("[there](#nowhere)", "nowhere"),
        ("[there](../plugins/nowhere)", "which does not exist"),
        ("::: pipezoo_core.nowhere", "nowhere"),
    ],
)
def test_what_leads_nowhere_ends_the_build(text, complaint, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/README.md").write_text(f"# A page\n\n{text}\n")
    (tmp_path / "docs/build_hooks.py").write_text((ROOT / "docs/build_hooks.py").read_text())
    config = (ROOT / "mkdocs.yml").read_text().partition("nav:\n")[0].replace("[core/src", f"[{ROOT}/core/src")
    (tmp_path / "mkdocs.yml").write_text(config + "nav:\n  - README.md\n")
    built = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert built.returncode != 0
    assert complaint in built.stdout + built.stderr
