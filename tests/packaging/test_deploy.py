"""What is in `deploy/`: valid for the programs that read it, and with options that the server has."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from pipezoo.cli.main import app
from pipezoo.serve.http.api_keys import read_api_keys
from pipezoo_core.errors import InvalidSettingError

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
OPTIONS = {option for parameter in get_command(app).commands["serve"].params for option in parameter.opts}


def tool(name):
    path = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def passes(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def container():
    manifests = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    [pod] = [one["spec"]["template"]["spec"] for one in manifests if one["kind"] == "Deployment"]
    return pod, pod["containers"][0]


def test_the_dockerfile_has_no_fault_that_its_linter_knows():
    assert passes(tool("hadolint"), str(DEPLOY / "Dockerfile")) == ""


@pytest.mark.slow
def test_the_manifests_are_valid():
    assert passes(tool("kubernetes-validate"), "--strict", str(DEPLOY / "kubernetes.yaml")).count("passed") == 4


def test_systemd_finds_nothing_but_the_missing_program():
    path = str(DEPLOY / "pipezoo.service")
    done = subprocess.run([tool("systemd-analyze"), "verify", path], capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if "is not executable" not in line]
    assert [line for line in lines if "pipezoo" in line] == []


def test_all_files_start_a_server_with_options_that_it_has():
    unit = re.search(r"^ExecStart=(.*)$", (DEPLOY / "pipezoo.service").read_text(), re.MULTILINE)[1]
    [entrypoint] = re.findall(r"^ENTRYPOINT \[(.*)\]$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    for words in (unit.split(), re.findall(r'"(.*?)"', entrypoint), container()[1]["args"]):
        used = {word for word in words if word.startswith("--")}
        assert used
        assert used <= OPTIONS


def test_requests_get_more_time_from_outside_than_from_the_server():
    [default] = [one.default for one in get_command(app).commands["serve"].params if one.name == "shutdown_timeout"]
    unit = re.search(r"^TimeoutStopSec=(\d+)$", (DEPLOY / "pipezoo.service").read_text(), re.MULTILINE)[1]
    assert int(unit) > default
    assert container()[0]["terminationGracePeriodSeconds"] > default


def test_the_manifests_bring_no_key_that_everybody_knows(tmp_path):
    manifests = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    [secret] = [one["stringData"] for one in manifests if one["kind"] == "Secret"]
    (tmp_path / "keys").write_text(secret["keys"])
    with pytest.raises(InvalidSettingError, match="none, or too many"):
        read_api_keys(str(tmp_path / "keys"))


def test_the_image_gets_our_packages_from_its_own_wheels(tmp_path):
    """And none of them by its name, from where anybody may have taken that."""
    wheels = {tmp_path / f"{name}-0.1.0-py3-none-any.whl" for name in ("pipezoo", "pipezoo_core", "pipezoo_llama")}
    for wheel in wheels:
        wheel.touch()
    [install] = re.findall(r"pip install (.*?)^USER", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE | re.DOTALL)
    words = passes("sh", "-c", f"printf '%s\\n' {install}".replace("/wheels", str(tmp_path))).splitlines()
    named = [word for word in words if re.search(r"pipezoo[\w-]*", word.replace(str(tmp_path), "/wheels"))]
    assert sorted(word.rpartition("file://")[2] for word in named) == sorted(map(str, wheels))


def test_the_image_has_every_package():
    [line] = re.findall(r"pip wheel .* (\./core .*)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    copied = {folder for pattern in line.split() for folder in ROOT.glob(pattern[2:]) if folder.is_dir()}
    parts = [ROOT / name for name in ("core", "registry", "kernels")]
    assert copied == {*parts, *(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))}
