"""The plugins of docs/writing-a-plugin.md and docs/plugins are built, installed and run as a reader would."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipezoo.discovery.published import PUBLISHED

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs/writing-a-plugin.md"
EXAMPLES = sorted((ROOT / "examples").glob("pipezoo-*"))
TOPICS = [page for page in sorted((ROOT / "docs/plugins").glob("*.md")) if "```python try_" in page.read_text()]


def files(text):
    """The files that a page shows, by their names."""
    return dict(re.findall(r"```\w+ (\S+)\n(.*?)```", text, re.DOTALL))


def write(folder, found):
    for name, text in found.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def run(folder, site, *arguments, **variables):
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={"PYTHONPATH": path, "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "HOME": str(folder), **variables},
        capture_output=True,
        text=True,
        timeout=540,
    )


def install(folder, site, *projects):
    """Builds the projects in a folder, and installs them beside pipezoo."""
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    made = run(folder, site, "-m", "pip", "install", *offline, "--target", str(site), *projects)
    assert made.returncode == 0, made.stderr


def assert_conforms(project, site):
    """Its test, which is the conformance kit, passes."""
    kit = ("-p", "pipezoo_core.testing.pytest_plugin", "-p", "no:cacheprovider")
    tested = run(project, site, "-m", "pytest", "-q", *kit, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert tested.returncode == 0, tested.stdout
    passed, skipped = (int(re.search(rf"(\d+) {word}", tested.stdout)[1]) for word in ("passed", "skipped"))
    assert passed > 10 > skipped


RUN_ALL = """
import runpy, sys, traceback

if __name__ == "__main__":
    failed = False
    for script in sys.argv[1:]:
        try:
            runpy.run_path(script, run_name="__main__")
        except BaseException:
            failed = True
            print(script, traceback.format_exc(), file=sys.stderr)
    sys.exit(failed)
"""


@pytest.fixture(scope="module")
def plugins(tmp_path_factory):
    """A folder with the smallest plugin and those of the other pages, and where they are installed.

    Those have a pyproject.toml like the smallest one's.
    """
    folder, site = tmp_path_factory.mktemp("plugins"), tmp_path_factory.mktemp("site")
    page, _, _ = GUIDE.read_text().partition("## A real one, step by step")
    toy = files(page)
    shown = [toy, *(files(topic.read_text()) for topic in TOPICS)]
    for found in shown:
        (module,) = (name.removesuffix(".py") for name in found if name.startswith("pipezoo_"))
        (model_type,) = re.findall(r'model_types=\("(\w+)",\)', found[f"{module}.py"])
        pyproject = toy["pyproject.toml"].replace("pipezoo-toy", module.replace("_", "-"))
        pyproject = pyproject.replace("toy =", f"{model_type} =").replace('"pipezoo_toy"', f'"{module}"')
        write(folder / module, {**found, "pyproject.toml": pyproject})
        write(folder, found)
    install(folder, site, *(f"./{path.parent.name}" for path in folder.glob("*/pyproject.toml")))
    return folder, site


@pytest.mark.slow
def test_the_examples_run(plugins):
    """Each compares what it computes, and what it asserts holds."""
    folder, site = plugins
    write(folder, {"run_all.py": RUN_ALL})
    scripts = sorted(path.name for path in folder.glob("try_*.py"))
    assert len(scripts) == 1 + len(TOPICS)
    ended = run(folder, site, "run_all.py", *scripts)
    assert ended.returncode == 0, ended.stderr
    listed = run(folder, site, "-m", "pipezoo", "plugins").stdout
    assert re.search(r"toy .*pipezoo-toy .*available", listed)


def test_the_smallest_plugin_is_as_small_as_the_page_says():
    lines = files(GUIDE.read_text())["pipezoo_toy.py"].splitlines()
    assert len([line for line in lines if line and not line.startswith(("from", "import"))]) <= 30


@pytest.mark.slow
def test_the_real_plugin_passes_its_test(tmp_path):
    shown = files(GUIDE.read_text().partition("## A real one, step by step")[2])
    assert len(shown) == 6
    project, site = tmp_path / "project", tmp_path / "site"
    write(project, {**shown, "src/pipezoo_seed_oss/__init__.py": ""})
    install(project, site, ".")
    assert_conforms(project, site)
    assert re.search(r"seed_oss .*pipezoo-seed-oss .*available", run(project, site, "-m", "pipezoo", "plugins").stdout)


@pytest.mark.slow
def test_its_package_can_be_published(tmp_path):
    """With the metadata of the page on publishing."""
    shown = files(GUIDE.read_text().partition("## A real one, step by step")[2])
    page = files((ROOT / "docs/plugins/publishing.md").read_text())
    more = {"src/pipezoo_seed_oss/__init__.py": "", "LICENSE": (ROOT / "LICENSE").read_text()}
    write(tmp_path, {**shown, **page, **more})
    built = run(tmp_path, tmp_path, "-m", "build", "--no-isolation")
    assert built.returncode == 0, built.stderr
    checked = run(tmp_path, tmp_path, "-m", "twine", "check", "--strict", *map(str, (tmp_path / "dist").iterdir()))
    assert checked.returncode == 0, checked.stdout
    workflows = [yaml.safe_load(text) for name, text in page.items() if name.startswith(".github/")]
    assert [[*workflow["jobs"]] for workflow in workflows] == [["build", "publish"], ["test"]]


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_examples_conform(example, tmp_path):
    """They are built and installed, served by no shipped plugin, and chosen before the fallback."""
    project = tmp_path / example.name
    shutil.copytree(example, project, ignore=shutil.ignore_patterns("build", "__pycache__"))
    install(project, tmp_path / "site", ".")
    assert_conforms(project, tmp_path / "site")
    model_type = example.name.removeprefix("pipezoo-")
    assert model_type not in PUBLISHED
    write(tmp_path, {"model/config.json": json.dumps({"model_type": model_type})})
    told = run(tmp_path, tmp_path / "site", "-m", "pipezoo", "why", "model").stdout
    assert re.search(rf"^taken +{model_type} \({example.name}", told, re.M), told
