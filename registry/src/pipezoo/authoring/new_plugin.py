"""The package of a new plugin: what it is called, and how it is written and brought up to date.

copier does both; it is an extra, because only authors need it.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import keyword
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from packaging.utils import InvalidName, canonicalize_name
from packaging.version import Version

from pipezoo.authoring.template_repository import newest_revision, template_repository
from pipezoo_core.errors import InvalidSettingError, MissingDependencyError
from pipezoo_core.hookspecs import API_VERSION

__all__ = ["LICENSES", "NewPlugin", "update_plugin"]

LICENSES = ("Apache-2.0", "MIT", "BSD-3-Clause")
"""What the package may be licensed under, by SPDX."""

_ANSWERS = ".copier-answers.yml"
_MODEL_TYPE = re.compile(r"[A-Za-z][\w.-]*", re.ASCII)
_WORDS = re.compile(r"[^A-Za-z0-9]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPlugin:
    """What a package is made of; what is None is asked for at a terminal, and else has the template's default.

    Attributes:
        model_type: that the plugin serves.
        distribution: its name for pip; by default `pipezoo-` and the model type.
        description: one line.
        author_name: the author's name.
        author_email: the author's address.
        license: one of `LICENSES`.
        reference: what `reference_of` returned; empty to start from a config class of the plugin's own.

    Raises:
        InvalidSettingError: a name or the license is none, or a line is several.
    """

    model_type: str
    distribution: str | None = None
    description: str | None = None
    author_name: str | None = None
    author_email: str | None = None
    license: str | None = None
    reference: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _MODEL_TYPE.fullmatch(self.model_type):
            raise InvalidSettingError(
                "this can be no model_type",
                found=self.model_type,
                allowed="letters, digits and _ . -, a letter first",
                cure="Take the model_type of the models' config.json.",
            )
        try:
            canonicalize_name(self.name, validate=True)
        except InvalidName:
            raise InvalidSettingError(
                "a package of Python cannot have this name",
                found=self.name,
                allowed="letters, digits and _ . -, the first and the last a letter or a digit",
            ) from None
        if self.license is not None and self.license not in LICENSES:
            raise InvalidSettingError(
                "the template has no such license",
                found=self.license,
                allowed=LICENSES,
                cure="Take one of these, and put another one's text and name into the package afterwards.",
            )
        for name in ("description", "author_name", "author_email"):
            if not (getattr(self, name) or "").isprintable():
                raise InvalidSettingError(f"{name} is not one line of text", found=getattr(self, name))

    @property
    def name(self) -> str:
        """What pip calls the package."""
        return self.distribution or f"pipezoo-{_WORDS.sub('-', self.model_type).strip('-').lower()}"

    @property
    def package(self) -> str:
        """What Python calls it."""
        name = canonicalize_name(self.name).replace("-", "_")
        return name if name.isidentifier() and not keyword.iskeyword(name) else f"pipezoo_{name}"

    @property
    def prefix(self) -> str:
        """What the names of its classes begin with."""
        own = "".join(word[:1].upper() + word[1:] for word in _WORDS.split(self.model_type))
        return self.reference.get("prefix", own)

    def write(self, folder: Path, *, is_asked: bool) -> None:
        """Writes the package.

        Args:
            folder: that does not exist yet, or is empty.
            is_asked: whether the user is asked for what is None, at the terminal.

        Raises:
            InvalidSettingError: there is something in the folder.
            MissingDependencyError: copier or git is not installed.
            UnreadableFileError: the folder cannot be written.
        """
        copier = _copier()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InvalidSettingError(
                f"{folder} exists, and nothing is written over",
                cure="Name another folder, or bring a package up to date with --update.",
            )
        given = ("description", "author_name", "author_email", "license")
        answers = {name: getattr(self, name) for name in given if getattr(self, name) is not None} | {
            "model_type": self.model_type,
            "distribution": self.name,
            "package": self.package,
            "prefix": self.prefix,
            "year": datetime.date.today().year,
            "reference": self.reference,
            **_facts(),
        }
        _run(
            copier.run_copy,
            template_repository(),
            folder,
            data=answers,
            vcs_ref=str(newest_revision()),
            defaults=not is_asked,
            quiet=True,
        )


def update_plugin(folder: Path) -> None:
    """Brings a package up to date with the newest template and this pipezoo-core, and keeps the author's changes.

    Where both changed the same lines, git's conflict markers are left in the file.

    Args:
        folder: of the package, under git and without changes that are not committed.

    Raises:
        InvalidSettingError: it was not written by `NewPlugin`, is not under git, or has changes.
        MissingDependencyError: copier or git is not installed.
    """
    copier = _copier()
    if not (folder / _ANSWERS).is_file():
        raise InvalidSettingError(
            f"{folder} has no {_ANSWERS}, so it was not written from the template",
            cure="Name the folder of a package that `pipezoo new-plugin` wrote.",
        )
    template_repository()
    _run(
        copier.run_update,
        folder,
        data=_facts(),
        defaults=True,
        overwrite=True,
        quiet=True,
        vcs_ref=str(newest_revision()),
    )


def _facts() -> dict[str, Any]:
    """Returns what the template has to know of the core that is installed."""
    found = Version(importlib.metadata.version("pipezoo-core"))
    bound = f"{found.major}.{found.minor + 1}" if found.major == 0 else f"{found.major + 1}"
    return {"core_requirement": f"pipezoo-core>={found.public},<{bound}", "api_version": API_VERSION}


def _copier() -> ModuleType:
    try:
        import copier
    except ImportError as error:
        raise MissingDependencyError(
            "writing a plugin's package needs copier", cure="Try, in a clone: pip install './registry[author]'"
        ) from error
    return copier


def _run(act: Any, *arguments: Any, **settings: Any) -> None:
    from copier.errors import CopierAnswersInterrupt, CopierError

    try:
        act(*arguments, **settings)
    except CopierAnswersInterrupt as error:
        raise KeyboardInterrupt from error
    except (CopierError, ValueError, OSError) as error:
        raise InvalidSettingError(
            "copier could not write the package", found=str(error) or type(error).__name__
        ) from error
