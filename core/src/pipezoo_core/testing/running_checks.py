"""Is it the same however it is run: in fewer bits, on several ranks, replayed, in the memory that was planned?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pipezoo_core.config import AttentionName, Capability, KVCacheConfig, LinearName, SupportedEncoding
from pipezoo_core.decoder import DecoderPipelineModel
from pipezoo_core.errors import PipezooError
from pipezoo_core.testing.agreement import check_same_logits
from pipezoo_core.testing.claims import those_claiming, those_running_in
from pipezoo_core.testing.failures import ConformanceError, NotCheckedError
from pipezoo_core.testing.plugin_under_test import PluginUnderTest
from pipezoo_core.testing.ranks import loaded_on_ranks
from pipezoo_core.testing.steps import inputs_of_prompts, logits_of
from pipezoo_core.testing.subject import Subject
from pipezoo_core.testing.tensors_alive import PeakOfTensors

__all__ = ["check_int4", "check_int8", "check_memory_plan", "check_replay", "check_two_ranks"]

_MOST_OFF = {SupportedEncoding.int8: 0.4, SupportedEncoding.int4: 1.0}
_PAGES_OF_KERNELS = KVCacheConfig(page_size=32, kv_cache_memory=2**23)
_PAGES_OF_LONG_STEPS = KVCacheConfig(page_size=8, kv_cache_memory=2**26)
_NUM_TOKENS = 1024
_SLACK = 2
_DIVIDED = (
    "Most likely a layer reads sizes from the config where its rank has a part of them, or outputs that are divided "
    "go into a layer that is not a RowParallelLinear. Heads are divided as config.heads says. What cannot be "
    "divided says so in not_claimed."
)
_NOT_NATIVE = "attention is"


def check_int8(plugin: PluginUnderTest, subjects: Sequence[Subject]) -> None:
    """In int8 the logits are near the reference's: the error is at most 0.4 of what they are, in mean squares."""
    del plugin
    _check_bits(SupportedEncoding.int8, subjects)


def check_int4(plugin: PluginUnderTest, subjects: Sequence[Subject]) -> None:
    """In int4 the logits are nearer to the reference's than any that know nothing of them."""
    del plugin
    _check_bits(SupportedEncoding.int4, subjects)


def _check_bits(encoding: SupportedEncoding, subjects: Sequence[Subject]) -> None:
    for subject in those_running_in(encoding, subjects):
        found = torch.cat(logits_of(subject.load(encoding=encoding), subject.prompts))
        expected = torch.cat([subject.expected(prompt) for prompt in subject.prompts])
        error = ((found - expected).norm() / (expected - expected.mean(0)).norm()).item()
        if not error <= _MOST_OFF[encoding]:
            raise ConformanceError(
                f"config {subject.name!r}: in {encoding} the logits have little to do with the reference's",
                found=f"an error of {error:.2g}",
                allowed=f"{_MOST_OFF[encoding]:.2g}",
                cure="Where float32 is right, most likely the module reads a Linear's `weight` itself, or has "
                f"a copy of it. A model that cannot be quantized leaves {encoding} out of supported_encodings.",
            )


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
    """The memory plan counts all weights, and for each token of a step what the module's tensors take.

    The plan has a fixed part for what torch's operations take for themselves, so up to twice its part of a token passes
    here, where these are counted.
    """
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
        if _SLACK * (estimates[1] - estimates[0]) < peaks[1] - peaks[0]:
            raise ConformanceError(
                f"config {subject.name!r}: a step takes more memory than is planned for it",
                found=f"{(peaks[1] - peaks[0]) / _NUM_TOKENS:.0f} bytes for a token",
                allowed=f"{_SLACK * (estimates[1] - estimates[0]) / _NUM_TOKENS:.0f}, {_SLACK} times what is planned",
                cure="A layer that makes more tensors than those of core says so: see Estimable in "
                "pipezoo_core/layers/alive.py.",
            )
