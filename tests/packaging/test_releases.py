"""What a release needs: one version, one list of Pythons, and workflows that build every package."""

import runpy
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
VERSION = runpy.run_path(str(ROOT / "version.py"))
MEMBERS = [
    path.parent for path in (ROOT, *ROOT.glob("*/"), *ROOT.glob("plugins/*/")) for path in path.glob("pyproject.toml")
]
PACKAGES = [member for member in MEMBERS if member != ROOT]


def workflow(name):
    return yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text())["jobs"]


def test_every_package_has_the_version_of_the_repository():
    """And requires the others in this version: `python version.py` has written both."""
    assert {*MEMBERS} == {*VERSION["MEMBERS"]}
    for member in MEMBERS:
        text = (member / "pyproject.toml").read_text()
        assert VERSION["rewritten"](text, VERSION["current"]()) == text, member


@pytest.mark.parametrize(("version", "bound"), [("0.2.1", "0.3"), ("1.4.0", "2"), ("0.9.0rc1", "0.10")])
def test_a_new_version_is_written(version, bound):
    text = (ROOT / "core/pyproject.toml").read_text() + (ROOT / "registry/pyproject.toml").read_text()
    written = VERSION["rewritten"](text, version)
    assert f'version = "{version}"' in written
    assert f'kernels = ["pipezoo-kernels=={version}"]' in written
    assert f'"pipezoo-core>={version},<{bound}"' in written
    ours = [line for line in written.splitlines() if "pipezoo" in line]
    before = [line for line in text.splitlines() if "pipezoo" in line]
    assert len([line for line, other in zip(ours, before, strict=True) if line != other]) == 2


def test_a_word_that_is_no_version_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["version.py", "next"])
    with pytest.raises(SystemExit):
        VERSION["main"]()
    assert "next is no version such as 0.2.0" in capsys.readouterr().err


def pythons(member):
    start = "Programming Language :: Python :: 3."
    said = tomllib.loads((member / "pyproject.toml").read_text())["project"]["classifiers"]
    return [f"3.{classifier.removeprefix(start)}" for classifier in said if classifier.startswith(start)]


def test_the_tests_run_with_every_python_that_is_promised():
    [matrix] = workflow("tests")["quick"]["strategy"]["matrix"].values()
    assert matrix == ["3.11", "3.12", "3.13", "3.14"]
    for package in PACKAGES:
        assert pythons(package) == matrix, package


def test_a_release_builds_every_package():
    jobs = workflow("release")
    steps = "\n".join(step.get("run", "") for job in jobs.values() for step in job["steps"])
    assert "for package in core registry plugins/*; do" in steps
    assert "cibuildwheel --output-dir dist kernels" in steps
    assert {*PACKAGES} == {ROOT / "core", ROOT / "registry", ROOT / "kernels", *(ROOT / "plugins").iterdir()}
    assert jobs["publish"]["needs"] == ["tests", "packages", "kernels"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert not [line for line in steps.splitlines() if "password" in line or "TOKEN" in line]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_a_package_has_what_its_page_needs(package):
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    assert (package / project["readme"]).read_text().startswith(f"# {project['name']}")
    assert [*package.glob("src/*/py.typed")]
    assert "urls" not in project  # there is no address yet
