"""What a plugin claims, as checks ask for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipezoo_core.config import Capability, SupportedEncoding, WeightsFormat
from pipezoo_core.testing.failures import NotCheckedError
from pipezoo_core.testing.subject import Subject

__all__ = ["one_of_each_kind", "those_claiming", "those_reading_gguf", "those_running_in"]


def those_claiming(capability: Capability, subjects: Sequence[Subject]) -> list[Subject]:
    """Returns one subject for each kind of module whose architecture claims a capability.

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
    return _one_of_each_module(found)


def those_running_in(encoding: SupportedEncoding, subjects: Sequence[Subject]) -> list[Subject]:
    """Returns one subject for each kind of module whose architecture supports an encoding.

    Raises:
        NotCheckedError: none does.
    """
    found = [subject for subject in subjects if encoding in subject.architecture.supported_encodings]
    if not found:
        raise NotCheckedError(f"{encoding} is not claimed: supported_encodings leave it out")
    return _one_of_each_module(found)


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
    return _first_of_each(subjects, lambda each: (each.architecture.name, each.layers))


def _one_of_each_module(subjects: Sequence[Subject]) -> list[Subject]:
    """Returns the first subject of each architecture, kind of attention, and set of parameters.

    What divides, quantizes or adapts weights may be wrong of a bias or a tied head alone.
    """

    def kind(subject: Subject) -> tuple[object, ...]:
        names = tuple(name for name, _ in subject.outline.named_parameters())
        return subject.architecture.name, subject.layers, names

    return _first_of_each(subjects, kind)


def _first_of_each(subjects: Sequence[Subject], kind: Callable[[Subject], object]) -> list[Subject]:
    found: dict[object, Subject] = {}
    for subject in subjects:
        found.setdefault(kind(subject), subject)
    return list(found.values())
