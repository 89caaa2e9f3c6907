"""Downloads from the Hugging Face Hub, by allow-list, into its usual cache; what goes wrong becomes a typed error.

Knows repositories and file names, nothing of what is in the files. The client is imported when first needed: whoever
only uses local files never waits for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pipezoo_core.errors import (
    DownloadError,
    GatedModelError,
    HubUnreachableError,
    ModelNotFoundError,
    PipezooError,
    shown,
)

__all__ = ["download_file", "download_files", "list_files"]

_REVISION = re.compile(r"(?![/-])(?!.*(?:\.\.|//|@\{))[^\x00-\x20\x7f~^:?*\[\\\ud800-\udfff]{1,250}(?<![/.])")
_HTTP_CLIENTS = ("httpx", "httpx2")  # which one the Hub's client uses, and lets through, depends on its version


def download_files(repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Downloads the files at the top of a repository that match a pattern, and returns the snapshot's folder.

    The folder is named after the commit. It may not exist, if nothing matched. A cache that has all files answers for a
    Hub that does not, and where it cannot be written.

    Raises:
        ModelNotFoundError: there is no such repository or revision.
        GatedModelError: the Hub refuses access.
        HubUnreachableError: the Hub cannot be asked and not all files are cached.
        DownloadError: a file did not arrive whole, or cannot be stored.
    """
    _check_revision(repository, revision)
    with _typed_errors(repository, revision):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        def snapshot(*, local_files_only: bool) -> Path:
            return Path(
                snapshot_download(
                    repository,
                    revision=revision,
                    allow_patterns=list(patterns),
                    ignore_patterns=["*/*"],
                    local_files_only=local_files_only,
                )
            )

        try:
            return snapshot(local_files_only=False)
        except Exception as error:
            if isinstance(error, PermissionError) or isinstance(
                _typed(error, repository, revision), HubUnreachableError
            ):
                with suppress(OSError, LocalEntryNotFoundError):
                    return snapshot(local_files_only=True)
            raise


def download_file(repository: str, commit: str, name: str) -> Path:
    """Downloads one file. Raises what `download_files` raises."""
    with _typed_errors(repository, commit):
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(repository, name, revision=commit))


def list_files(repository: str, commit: str) -> list[str]:
    """Returns the names of all files of a repository. Raises what `download_files` raises; the cache cannot answer."""
    with _typed_errors(repository, commit):
        from huggingface_hub import HfApi

        return sorted(HfApi().list_repo_files(repository, revision=commit))


def _check_revision(repository: str, revision: object) -> None:
    """Refuses what Git has no name for; the client would look for it in the cache, as the path of a file."""
    if revision is not None and not (isinstance(revision, str) and _REVISION.fullmatch(revision)):
        raise _no_revision(repository, revision)


def _no_revision(repository: str, revision: object) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"the Hub's repository {repository!r} has no revision {shown(revision)}",
        allowed="a branch, a tag or a full commit hash",
        cure="Check the spelling against the repository's page.",
    )


@contextmanager
def _typed_errors(repository: str, revision: str | None) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # those that are not the Hub's are raised again
        typed = _typed(error, repository, revision)
        if typed is None:
            raise
        raise typed from error


def _typed(error: Exception, repository: str, revision: str | None) -> PipezooError | None:
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, errors.HfHubHTTPError):
        error = error.__cause__  # the client asked, was refused, and then found nothing in the cache either
    if isinstance(error, errors.HFValidationError):
        return ModelNotFoundError(f"{repository!r} cannot be a repository of the Hub", found=error, allowed="org/name")
    if isinstance(error, errors.GatedRepoError):
        return GatedModelError(
            f"the Hub's repository {repository!r} is gated",
            cure="Ask for access on its page, then log in: hf auth login",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelNotFoundError(
            f"the Hub has no repository {repository!r}, or it is private",
            cure="Check the spelling; for a private one log in: hf auth login",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return _no_revision(repository, revision)
    return _refused_or_unreachable(error, repository) or _not_stored(error, repository)


def _refused_or_unreachable(error: Exception, repository: str) -> PipezooError | None:
    from huggingface_hub import errors

    found = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    if isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 403):
        return GatedModelError(
            f"the Hub refuses access to {repository!r}", found=found, cure="Check your token: hf auth whoami"
        )
    if any(isinstance(link, errors.OfflineModeIsEnabled) for link in (error, error.__cause__)):
        return HubUnreachableError(
            f"{repository!r} is not completely cached, and the Hub must not be asked",
            found="offline mode (HF_HUB_OFFLINE)",
            cure="Load it once without HF_HUB_OFFLINE, or give a local folder.",
        )
    unreachable = (errors.LocalEntryNotFoundError, errors.HfHubHTTPError)
    if isinstance(error, unreachable) or type(error).__module__.partition(".")[0] in _HTTP_CLIENTS:
        return HubUnreachableError(
            f"the Hub cannot be reached, and {repository!r} is not completely cached",
            found=found,
            cure="Check the connection and try again, or give a local folder.",
        )
    return None


def _not_stored(error: Exception, repository: str) -> PipezooError | None:
    """Names what is neither the Hub's refusal nor a lost connection: an answer of another kind, or a full disk."""
    found = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    if isinstance(error, OSError) and error.errno is not None:
        return DownloadError(
            f"what the Hub has of {repository!r} cannot be stored in its cache",
            found=found,
            cure="Free space, or set HF_HOME to a folder that can be written.",
        )
    if isinstance(error, OSError):  # the client found another size than the Hub had told
        return DownloadError(f"a file of {repository!r} did not arrive whole", found=found, cure="Try again.")
    if isinstance(error, ValueError | KeyError | TypeError | AttributeError | AssertionError):
        return HubUnreachableError(
            f"what answers in place of the Hub does not know {repository!r} as it would",
            found=found,
            cure="Check whether the network wants a login, and HF_ENDPOINT, or give a local folder.",
        )
    return None
