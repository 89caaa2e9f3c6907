"""Is it the same in whatever way requests are fed: in chunks, in a batch, in several steps, on either backend?"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipezoo_core.config import AttentionName, LinearName
from pipezoo_core.testing.agreement import check_same_logits
from pipezoo_core.testing.claims import one_of_each_kind
from pipezoo_core.testing.plugin_under_test import PluginUnderTest
from pipezoo_core.testing.steps import logits_of, logits_of_several_steps
from pipezoo_core.testing.subject import Subject

__all__ = ["check_backends", "check_batch", "check_causality", "check_chunks", "check_several_steps"]

_CHUNK = 7  # no multiple of a page, and none of a prompt
_STATE = (
    "Most likely the module keeps something of a step in itself, or counts rows where it should look at kv.positions: "
    "what it knows of a request is in the KV cache alone."
)


def check_causality(plugin: PluginUnderTest, subjects: Sequence[Subject]) -> None:
    """No token's logits depend on the tokens behind it."""
    del plugin
    for subject in one_of_each_kind(subjects):
        model = subject.load()
        prompt = subject.prompts[1]
        half = prompt[: len(prompt) // 2]
        (short,), (whole,) = logits_of(model, [half]), logits_of(model, [prompt])
        check_same_logits(
            [whole[: len(half)]],
            [short],
            f"config {subject.name!r}: the logits of {{}} depend on the tokens behind it",
            "The attention is not causal in a prefill. Most likely it is not computed by core's Attention, or with a "
            "mask that lets tokens see later ones.",
        )


def check_batch(plugin: PluginUnderTest, subjects: Sequence[Subject]) -> None:
    """Prompts in a batch have the logits that each has alone."""
    del plugin
    for subject in one_of_each_kind(subjects):
        model = subject.load()
        alone = [logits_of(model, [prompt])[0] for prompt in subject.prompts]
        check_same_logits(
            logits_of(model, subject.prompts),
            alone,
            f"config {subject.name!r}: in a batch other logits come out than alone, first of {{}}",
            "The tokens of all requests lie in a row, and a request's neighbours must not matter. " + _STATE,
        )


def check_chunks(plugin: PluginUnderTest, subjects: Sequence[Subject]) -> None:
    """Prompts that are fed in chunks have the logits that they have whole."""
    del plugin
    for subject in one_of_each_kind(subjects):
        model = subject.load()
        check_same_logits(
            logits_of(model, subject.prompts, _CHUNK),
            logits_of(model, subject.prompts),
            f"config {subject.name!r}: in chunks of {_CHUNK} tokens other logits come out than whole, first of {{}}",
            "A chunk's positions begin where the one before ended. " + _STATE,
        )


def check_several_steps(plugin: PluginUnderTest, subjects: Sequence[Subject]) -> None:
    """Tokens that are generated one after the other have the logits that the reference gives to all of them at once."""
    del plugin
    for subject in one_of_each_kind(subjects):
        model, prompts = subject.load(), subject.prompts
        found = logits_of_several_steps(model, prompts, num_steps=5)
        expected = []
        for prompt, logits in zip(prompts, found, strict=True):
            tokens = prompt + logits.argmax(-1)[:-1].tolist()
            expected.append(subject.expected(tokens)[len(prompt) - 1 :])
        check_same_logits(
            found,
            expected,
            f"config {subject.name!r}: in decode steps the logits are not the reference's, first of {{}}",
            "The prompt itself has the right ones where the check of log probabilities passes. " + _STATE,
        )


def check_backends(plugin: PluginUnderTest, subjects: Sequence[Subject]) -> None:
    """Paged attention in plain torch, and whatever is fastest here, are the slow reference backend in float64."""
    del plugin
    for subject in one_of_each_kind(subjects):
        slow = subject.load(attention=AttentionName.reference, linear=LinearName.torch)
        expected = logits_of(slow, subject.prompts)
        for attention in (AttentionName.paged, AttentionName.auto):
            with torch.inference_mode():
                found = logits_of(subject.load(attention=attention), subject.prompts)
            check_same_logits(
                found,
                expected,
                f"config {subject.name!r}: attention {str(attention)!r} is not the reference backend, first of {{}}",
                "Most likely the module computes a part of the attention beside core's Attention, or changes a tensor "
                "in place that Attention was given.",
            )
