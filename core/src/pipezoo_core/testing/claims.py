"""What a plugin claims, as checks ask for it."""

from __future__ import annotations

from collections.abc import Sequence

from pipezoo_core.config import Capability, SupportedEncoding, WeightsFormat
from pipezoo_core.testing.failures import NotCheckedError
from pipezoo_core.testing.subject import Subject

__all__ = ["one_of_each_kind", "those_claiming", "those_reading_gguf", "those_running_in"]


def those_claiming(capability: Capability, subjects: Sequence[Subject]) -> list[Subject]:
    """Returns one subject for each kind of attention whose architecture claims a capability.

    Raises:
        NotCheckedError: none does; the reasons are the plugin's.
    """
    reasons = {
        subject.architecture.not_claimed[capability]: None
        for subject in subjects
        if capability in subject.architecture.not_claimed
    }
    found = [subject for subject in subjects if capability not in subject.architecture.not_claimed]
    if not found:
        raise NotCheckedError(f"{capability} is not claimed: {'; '.join(reasons)}")
    return one_of_each_kind(found)


def those_running_in(encoding: SupportedEncoding, subjects: Sequence[Subject]) -> list[Subject]:
    """Returns one subject for each kind of attention whose architecture supports an encoding.

    Raises:
        NotCheckedError: none does.
    """
    found = [subject for subject in subjects if encoding in subject.architecture.supported_encodings]
    if not found:
        raise NotCheckedError(f"{encoding} is not claimed: supported_encodings leave it out")
    return one_of_each_kind(found)


def those_reading_gguf(subjects: Sequence[Subject]) -> list[Subject]:
    """Returns the subjects whose architecture reads GGUF files.

    Raises:
        NotCheckedError: none does.
    """
    found = [subject for subject in subjects if subject.architecture.config_from_gguf is not None]
    if not found:
        raise NotCheckedError("gguf is not claimed: no architecture has a config_from_gguf")
    missing = [each.architecture.name for each in found if WeightsFormat.gguf not in each.architecture.weight_adapters]
    assert not missing, f"{missing} have a config_from_gguf and no weight adapter for it"
    return found


def one_of_each_kind(subjects: Sequence[Subject]) -> list[Subject]:
    """Returns the first subject of each architecture and kind of attention: what others do in pages is the same."""
    return list({(subject.architecture.name, subject.layers): subject for subject in reversed(subjects)}.values())[::-1]
