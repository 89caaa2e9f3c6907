"""The checks by their names, in the order in which an author meets them. Imports none of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipezoo_core.errors import CheckpointMismatchError
from pipezoo_core.testing.failures import NotCheckedError

__all__ = ["CHECKS", "Check"]

_PACKAGE = "pipezoo_core.testing"


@dataclass(frozen=True, slots=True)
class Check:
    """One question to a plugin.

    Attributes:
        name: by which it is called, in the test class with `test_` before it.
        where: the module of this package, and the function in it, that asks.
        question: what passes when it is answered with yes.
    """

    name: str
    where: str
    question: str

    @property
    def is_of_models(self) -> bool:
        """Whether it looks at models, for which there has to be a reference implementation."""
        return not self.where.startswith("discovery_checks:")

    def run(self, *arguments: Any) -> None:
        """Asks. Imports what it needs to, torch and transformers among it.

        Args:
            arguments: the plugin, and the subjects.

        Raises:
            ConformanceError: the answer is no.
            NotCheckedError: the plugin does not claim it, or its weights do not fit, which is what another check says.
        """
        module, _, function = self.where.partition(":")
        ask: Callable[..., None] = getattr(importlib.import_module(f"{_PACKAGE}.{module}"), function)
        try:
            ask(*arguments)
        except CheckpointMismatchError as error:
            if _weights_fit(*arguments):
                raise
            raise NotCheckedError("the weights do not fit: see the check weights") from error


def _weights_fit(plugin: Any, subjects: Sequence[Any]) -> bool:
    del plugin
    try:
        for subject in subjects:
            subject.load()
    except CheckpointMismatchError:
        return False
    return True


CHECKS = tuple(
    Check(*row)
    for row in (
        ("discovery", "discovery_checks:check_discovery", "is it found without importing what is heavy?"),
        ("rediscovery", "discovery_checks:check_rediscovery", "does another process find the same?"),
        ("spec", "model_checks:check_spec", "is what it says of the layers valid?"),
        ("weights", "model_checks:check_weights", "is every weight accounted for?"),
        ("causality", "serving_checks:check_causality", "does no token see later ones?"),
        ("log_probabilities", "model_checks:check_log_probabilities", "are they the reference's in float32?"),
        ("backends", "serving_checks:check_backends", "is every attention backend the reference backend?"),
        ("chunks", "serving_checks:check_chunks", "are prompts in chunks what they are whole?"),
        ("batch", "serving_checks:check_batch", "are requests in a batch what they are alone?"),
        ("several_steps", "serving_checks:check_several_steps", "are decode steps what the reference says?"),
        ("preemption", "pipeline_checks:check_preemption", "is a preempted request what it is undisturbed?"),
        ("prefix_hit", "pipeline_checks:check_prefix_hit", "is a request on shared pages what it is alone?"),
        ("abort", "pipeline_checks:check_abort", "does a request that is given up free its pages?"),
        ("echo", "pipeline_checks:check_echo", "does a pipeline tell the right log probabilities?"),
        ("saved_in_shards", "model_checks:check_saved_in_shards", "is it the same in several files?"),
        ("lora", "lora_checks:check_lora", "is an adapter what it is merged?"),
        ("int8", "bits_checks:check_int8", "are the logits near in int8?"),
        ("int4", "bits_checks:check_int4", "are they in int4?"),
        ("two_ranks", "running_checks:check_two_ranks", "are two ranks what one is?"),
        ("replay", "running_checks:check_replay", "are replayed steps what others are?"),
        ("memory_plan", "running_checks:check_memory_plan", "is what is planned enough?"),
        ("gguf", "gguf_checks:check_gguf", "is a GGUF file the model that it was written from?"),
    )
)
"""All of them. Each is a method of `PluginConformance`."""
