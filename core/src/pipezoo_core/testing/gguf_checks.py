"""Is a GGUF file, written as converters do, the model that it was written from?"""

from __future__ import annotations

from collections.abc import Sequence

from pipezoo_core.testing.agreement import check_same_logits
from pipezoo_core.testing.claims import those_reading_gguf
from pipezoo_core.testing.failures import NotCheckedError
from pipezoo_core.testing.plugin_under_test import PluginUnderTest
from pipezoo_core.testing.steps import logits_of
from pipezoo_core.testing.subject import Subject

__all__ = ["check_gguf"]


def check_gguf(plugin: PluginUnderTest, subjects: Sequence[Subject]) -> None:
    """The model of a GGUF file has the logits of the reference that it was written from."""
    del plugin
    for subject in those_reading_gguf(subjects):
        path = subject.gguf_file
        if path is None:
            raise NotCheckedError("nobody writes a file to read: the test class has no method write_gguf")
        check_same_logits(
            logits_of(subject.load_gguf(path), subject.prompts),
            [subject.expected(prompt) for prompt in subject.prompts],
            f"config {subject.name!r}: a GGUF file of the reference has other logits, first of {{}}",
            "Where the check of log probabilities passes, most likely config_from_gguf leaves an entry out, or "
            "the weight adapter does not undo what the converter changes: the order of q's and k's rows (in_halves), "
            "or 1 that is added to the weights of norms.",
        )
