"""The templates of a plugin's package, as the git repository that copier wants.

copier brings a package up to date by comparing what the template wrote then with what it writes now, so it has to reach
every revision that was ever released. The wheel has them all, and this makes of them a repository with a tag for each,
in the user's data folder: the same commits on every machine, so that a package can be brought up to date on any.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from pipezoo_core.errors import MissingDependencyError, UnreadableFileError

__all__ = ["SOURCE", "newest_revision", "template_repository"]

_TEMPLATES = Path(__file__).parent / "templates"

SOURCE = "~/.local/share/pipezoo/plugin-template"
"""Where the repository is; packages remember it with the tilde, as it has to be there for each of their authors."""

_SAME_EVERYWHERE = {
    **{f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in (
        ("NAME", "pipezoo"), ("EMAIL", "pipezoo@localhost"), ("DATE", "2026-01-01T00:00:00Z")
    )},
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
}  # fmt: skip


def newest_revision() -> int:
    """Returns the number of the revision that this pipezoo writes."""
    return _revisions()[-1]


def template_repository() -> str:
    """Makes the repository, or brings it up to date, and returns its address for copier.

    Where a newer pipezoo has made it, it stays as it is: it has all revisions that this one has.

    Raises:
        MissingDependencyError: there is no git.
        UnreadableFileError: the folder cannot be written, or git fails there.
    """
    if shutil.which("git") is None:
        raise MissingDependencyError("git is not installed, and copier works with it", cure="Install git.")
    folder = Path(SOURCE).expanduser()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            _make(Path(made))
            tags = _git(folder, "tag").split() if folder.exists() else []
            if max(map(int, tags), default=0) <= newest_revision() and _commits(folder) != _commits(Path(made)):
                shutil.rmtree(folder, ignore_errors=True)
                shutil.copytree(made, folder)
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        raise UnreadableFileError(
            f"the template's repository at {folder} cannot be made",
            found=getattr(error, "stderr", None) or str(error),
            cure="Remove that folder, or make it writable.",
        ) from error
    return SOURCE


def _revisions() -> list[int]:
    return sorted(int(path.name) for path in _TEMPLATES.iterdir())


def _make(repository: Path) -> None:
    _git(repository, "init", "--quiet", "--initial-branch=main", "--template=")
    for revision in _revisions():
        for old in repository.iterdir():
            if old.name != ".git":
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        shutil.copytree(_TEMPLATES / str(revision), repository, dirs_exist_ok=True)
        _git(repository, "add", "--all", "--force")
        _git(repository, "commit", "--quiet", "--message", f"Revision {revision}")
        _git(repository, "tag", str(revision))


def _commits(repository: Path) -> str:
    return _git(repository, "log", "--format=%H %D") if repository.exists() else ""


def _git(repository: Path, *arguments: str) -> str:
    command = ["git", "-C", str(repository), *arguments]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment = {**kept, **_SAME_EVERYWHERE}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
