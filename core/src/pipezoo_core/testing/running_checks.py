"""Is it the same however it is run: on several ranks, replayed, in the memory that was planned?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pipezoo_core.config import AttentionName, Capability, KVCacheConfig, LinearName
from pipezoo_core.decoder import DecoderPipelineModel
from pipezoo_core.errors import PipezooError
from pipezoo_core.testing.agreement import check_same_logits
from pipezoo_core.testing.claims import those_claiming
from pipezoo_core.testing.failures import ConformanceError, NotCheckedError
from pipezoo_core.testing.plugin_under_test import PluginUnderTest
from pipezoo_core.testing.ranks import loaded_on_ranks
from pipezoo_core.testing.steps import inputs_of_prompts, logits_of
from pipezoo_core.testing.subject import Subject
from pipezoo_core.testing.tensors_alive import PeakOfTensors

__all__ = ["check_memory_plan", "check_replay", "check_two_ranks"]

_PAGES_OF_KERNELS = KVCacheConfig(page_size=32, kv_cache_memory=2**23)
_PAGES_OF_LONG_STEPS = KVCacheConfig(page_size=8, kv_cache_memory=2**26)
_NUM_TOKENS = 1024
_DIVIDED = (
    "Most likely a layer reads sizes from the config where its rank has a part of them, or outputs that are divided "
    "go into a layer that is not a RowParallelLinear. Heads are divided as config.heads says. What cannot be "
    "divided says so in not_claimed."
)
_NOT_NATIVE = "attention is"


def check_two_ranks(plugin: PluginUnderTest, subjects: Sequence[Subject]) -> None:
    """Two ranks that divide the model compute what one does."""
    del plugin
    for subject in those_claiming(Capability.tensor_parallelism, subjects):
        expected = logits_of(subject.load(), subject.prompts)
        try:
            with loaded_on_ranks(subject, 2) as divided:
                found = logits_of(divided, subject.prompts)
        except (PipezooError, RuntimeError) as error:
            raise ConformanceError(
                f"config {subject.name!r}: two ranks cannot divide the model",
                found=error,
                cure="Give the config sizes that two can divide. " + _DIVIDED,
            ) from error
        check_same_logits(
            found,
            expected,
            f"config {subject.name!r}: on two ranks other logits come out than on one, first of {{}}",
            _DIVIDED,
        )


def check_replay(plugin: PluginUnderTest, subjects: Sequence[Subject]) -> None:
    """Steps are recorded and replayed, and compute what they do when they are not."""
    del plugin
    reasons: dict[str, None] = {}
    num_checked = 0
    for subject in those_claiming(Capability.replay, subjects):
        obstacle = _obstacle(subject)
        if obstacle is not None and _NOT_NATIVE in obstacle:
            reasons[obstacle] = None
            continue
        if obstacle is not None:
            raise ConformanceError(
                f"config {subject.name!r}: steps are not replayed",
                found=obstacle,
                cure="Of a step the module may use tokens, kv.positions, kv.context_lengths and Attention, and decide "
                "nothing by their values. One that cannot keep to that says so in not_claimed, and is slower.",
            )
        num_checked += 1
        settings: dict[str, Any] = {"kv_cache": _PAGES_OF_KERNELS}
        prompts = subject.prompts[:3]
        check_same_logits(
            logits_of(subject.load(**settings), prompts, 1),
            logits_of(subject.load(**settings, enforce_eager=True), prompts, 1),
            f"config {subject.name!r}: replayed steps have other logits than others, first of {{}}",
            "Most likely the module keeps something of a step, or computes with a number of Python that it has taken "
            "from a tensor: a replay has the one of the step that was recorded.",
        )
    if not num_checked:
        raise NotCheckedError(f"no step can be replayed here: {'; '.join(reasons)}")


def _obstacle(subject: Subject) -> str | None:
    model = subject.architecture.pipeline_model
    if not issubclass(model, DecoderPipelineModel):
        return "the model is none of core's decoders"
    return model.step_outlook(subject.planned(kv_cache=_PAGES_OF_KERNELS), subject.huggingface_config).obstacle


def check_memory_plan(plugin: PluginUnderTest, subjects: Sequence[Subject]) -> None:
    """The memory plan counts all weights, and for each token of a step what the module's tensors take."""
    del plugin
    settings: dict[str, Any] = {
        "attention": AttentionName.paged,
        "linear": LinearName.torch,
        "kv_cache": _PAGES_OF_LONG_STEPS,
    }
    for subject in subjects[:1]:
        model = subject.architecture.pipeline_model
        if not issubclass(model, DecoderPipelineModel):
            raise NotCheckedError("the model is none of core's decoders, and plans for itself")
        loaded = subject.load(**settings)
        assert isinstance(loaded, DecoderPipelineModel)
        assert isinstance(loaded.module, nn.Module)
        planned = model.estimate_weights_size(subject.planned(**settings))
        taken = sum({parameter.data_ptr(): parameter.nbytes for parameter in loaded.module.parameters()}.values())
        if planned < taken:
            raise ConformanceError(
                f"config {subject.name!r}: the memory plan counts too few weights",
                found=f"{planned} bytes",
                allowed=f"{taken} bytes",
                cure="Most likely the module makes parameters, or copies, when it is first used.",
            )
        estimates, peaks = [], []
        for count in (_NUM_TOKENS, 2 * _NUM_TOKENS):
            config = subject.planned(**settings, max_batch_tokens=count)
            estimates.append(model.estimate_activation_memory(config, subject.huggingface_config))
            length = min(subject.max_length - 8, 128)
            prompts = [[token % subject.vocab_size] * length for token in range(count // length)]
            with inputs_of_prompts(loaded, prompts) as inputs, torch.inference_mode(), PeakOfTensors() as alive:
                loaded.module(inputs.tokens, inputs.kv_cache)
            peaks.append(alive.peak)
        if estimates[1] - estimates[0] < peaks[1] - peaks[0]:
            raise ConformanceError(
                f"config {subject.name!r}: a step takes more memory than is planned for it",
                found=f"{(peaks[1] - peaks[0]) / _NUM_TOKENS:.0f} bytes for a token",
                allowed=f"{(estimates[1] - estimates[0]) / _NUM_TOKENS:.0f}, which the plan adds for one",
                cure="A layer that makes more tensors than those of core says so: see Estimable in "
                "pipezoo_core/layers/alive.py.",
            )
