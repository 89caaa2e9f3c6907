"""Is a GGUF file, written as converters do, the model that it was written from?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipezoo_core.decoder import DecoderPipelineModel
from pipezoo_core.errors import PipezooError
from pipezoo_core.testing.agreement import check_same_logits
from pipezoo_core.testing.claims import those_reading_gguf
from pipezoo_core.testing.failures import NotCheckedError
from pipezoo_core.testing.gguf_file import as_files_say, write_gguf
from pipezoo_core.testing.plugin_under_test import PluginUnderTest
from pipezoo_core.testing.steps import logits_of
from pipezoo_core.testing.subject import Subject

__all__ = ["check_gguf"]


def check_gguf(plugin: PluginUnderTest, subjects: Sequence[Subject]) -> None:
    """The model of a GGUF file has the logits of the reference that it was written from.

    Where the author writes no files, configs of which the kit writes the same file, but for the numbers, are one: a
    file that does not say whether a router normalizes is of the config that llama.cpp takes it for.
    """
    del plugin
    found = those_reading_gguf(subjects)
    for files in [[(each, each.gguf_file)] for each in found if each.gguf_file] or _written(found):
        failures: list[PipezooError] = []
        for subject, path in files:
            try:
                _check(subject, path)
                break
            except PipezooError as error:
                failures.append(error)
        else:
            raise failures[0]


def _written(subjects: Sequence[Subject]) -> list[list[tuple[Subject, Path]]]:
    """Returns subjects with files that the kit writes of them, those whose files say the same together.

    Raises:
        NotCheckedError: there is none that it can write.
    """
    alike: dict[object, list[tuple[Subject, Path]]] = {}
    reasons: dict[str, None] = {}
    for each in subjects:
        try:
            subject = as_files_say(each)
            path = subject.folder / "model.gguf"
            alike.setdefault(write_gguf(subject, path), []).append((subject, path))
        except NotCheckedError as error:
            reasons[str(error)] = None
    if not alike:
        raise NotCheckedError("; ".join(reasons))
    return list(alike.values())


def _check(subject: Subject, path: Path) -> None:
    check_same_logits(
        logits_of(subject.load_gguf(path), subject.prompts),
        [subject.expected(prompt) for prompt in subject.prompts],
        f"config {subject.name!r}: a GGUF file of the reference has other logits, first of {{}}",
        f"Where the check of log probabilities passes, {_cause(subject, path)}",
    )


def _cause(subject: Subject, path: Path) -> str:
    others = _read_otherwise(subject, path)
    if others:
        return (
            f"most likely config_from_gguf leaves an entry out, or reads another: of the file, {' and '.join(others)} "
            "of the plugin's config is not what config.json says."
        )
    return (
        "and as the config is the same, the weight adapter does not undo what the converter changes: the order of q's "
        "and k's rows (in_halves), 1 that is added to the weights of norms, or the order of a fused layer's rows."
    )


def _read_otherwise(subject: Subject, path: Path) -> list[str]:
    """Returns the fields of the plugin's config that are another's for the file than for config.json."""
    model = subject.architecture.pipeline_model
    if not issubclass(model, DecoderPipelineModel):
        return []
    of_file, of_json = (
        model.config_class.from_huggingface(config)
        for config in (subject.huggingface_config_of(path), subject.huggingface_config)
    )
    return [
        field.name
        for field in dataclasses.fields(of_json)
        if not _is_same(getattr(of_file, field.name), getattr(of_json, field.name))
    ]


def _is_same(one: object, other: object) -> bool:
    """Whether two values are the same, but for floats in a file, which has them in 32 bits."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return all(_is_same(one[key], other[key]) for key in one.keys() & other.keys())
    return one == other
