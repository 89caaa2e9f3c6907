"""Copies of shipped plugins with one line changed, installed beside them as distributions of their own."""

import importlib
import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

_numbers = itertools.count()


@dataclass(frozen=True)
class Bug:
    """A mistake that an author can make.

    Attributes:
        name: of the mistake.
        package: the shipped plugin that is copied.
        file: in which a line is changed.
        right: the text that is there once.
        wrong: the text in its place.
        model_type: whose tiny configs are checked.
        config: which of them.
        check: that fails first.
        cause: what its message says, a regular expression.
    """

    name: str
    package: str
    file: str
    right: str
    wrong: str
    model_type: str
    config: str
    check: str
    cause: str


def folder_of(bug):
    """Returns the folder of the plugin that is copied."""
    return Path(importlib.import_module(bug.package).__file__).parent


def plant(bug, site):
    """Installs a copy with the mistake into a folder that is imported from, and returns the distribution's name."""
    package = f"planted_{next(_numbers)}"
    source = folder_of(bug)
    for path in source.rglob("*.py"):
        text = path.read_text()
        if path.relative_to(source).as_posix() == bug.file:
            assert text.count(bug.right) == 1, f"{bug.right!r} is not once in {bug.file}"
            text = text.replace(bug.right, bug.wrong)
        target = site / package / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text.replace(bug.package, package))
    metadata = site / f"{package}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[pipezoo.plugins]\n{bug.model_type} = {package}.plugin\n")
    return package


def forget(package):
    """Takes the modules of a planted copy out of memory."""
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]
