"""The plugins of docs/writing-a-plugin.md and docs/plugins are built, installed and run as a reader would."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs/writing-a-plugin.md"
TOPICS = [page for page in sorted((ROOT / "docs/plugins").glob("*.md")) if "```python try_" in page.read_text()]


def files(text):
    """The files that a page shows, by their names."""
    return dict(re.findall(r"```\w+ (\S+)\n(.*?)```", text, re.DOTALL))


def write(folder, found):
    for name, text in found.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def run(folder, site, *arguments):
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={"PYTHONPATH": path, "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=540,
    )


def install(folder, site, *projects):
    """Builds the projects in a folder, and installs them beside pipezoo."""
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    made = run(folder, site, "-m", "pip", "install", *offline, "--target", str(site), *projects)
    assert made.returncode == 0, made.stderr


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
    tested = run(project, site, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert tested.returncode == 0, tested.stdout
    assert "2 passed" in tested.stdout
    assert re.search(r"seed_oss .*pipezoo-seed-oss .*available", run(project, site, "-m", "pipezoo", "plugins").stdout)
