"""An environment that has what pipezoo needs, and nothing of pipezoo until it is installed there."""

import os
import subprocess
import sysconfig
import venv
from pathlib import Path

__all__ = ["install", "make_clean_python", "run"]


def make_clean_python(folder):
    """Returns the Python of a new environment that borrows third-party packages through links."""
    venv.create(folder, with_pip=True, symlinks=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", query], check=True, capture_output=True, text=True).stdout.strip())
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        ours = "pipezoo" in entry.name or entry.name.startswith(("_editable", "__editable"))
        if not ours and not (site / entry.name).exists():
            (site / entry.name).symlink_to(entry)
    return python


def run(python, *arguments):
    """Runs it, without what this process's environment tells Python."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        [str(python), *arguments], capture_output=True, text=True, env=environment, cwd=python.parent, check=False
    )


def install(python, *wheels):
    """Installs wheels, without what they require."""
    result = run(python, "-m", "pip", "install", "--no-deps", "--no-index", *map(str, wheels))
    assert result.returncode == 0, result.stderr
