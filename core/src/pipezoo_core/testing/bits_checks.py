"""Is it nearly the same in fewer bits?"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipezoo_core.config import SupportedEncoding
from pipezoo_core.layers.quantized import GROUP, QuantizedProduct
from pipezoo_core.testing.claims import those_running_in
from pipezoo_core.testing.failures import ConformanceError
from pipezoo_core.testing.plugin_under_test import PluginUnderTest
from pipezoo_core.testing.reference import reference_logits
from pipezoo_core.testing.steps import logits_of
from pipezoo_core.testing.subject import Subject

__all__ = ["check_int4", "check_int8"]

_BITS = {SupportedEncoding.int8: 8, SupportedEncoding.int4: 4}
_TIMES = {SupportedEncoding.int8: 3.0, SupportedEncoding.int4: 1.5}
_UNRELATED = 1.0  # from which on logits that are all the same would be nearer


def check_int8(plugin: PluginUnderTest, subjects: Sequence[Subject]) -> None:
    """In int8 the logits are as near to the reference's as those of the reference with rounded weights."""
    del plugin
    _check_bits(SupportedEncoding.int8, subjects)


def check_int4(plugin: PluginUnderTest, subjects: Sequence[Subject]) -> None:
    """In int4 they are likewise, and nearer than any that know nothing of them."""
    del plugin
    _check_bits(SupportedEncoding.int4, subjects)


def _check_bits(encoding: SupportedEncoding, subjects: Sequence[Subject]) -> None:
    """The bound is what rounding its weights does to the reference itself, a few times, of a token in the middle.

    In int8 kernels round the inputs of products to 8 bits, too, which takes about as much away again. In int4 that is
    nothing beside what the weights lose. And a little is left for matrices that a plugin stores in another order: other
    numbers share a scale there. The few tokens that rounding sends to other experts are not in the middle.
    """
    for subject in those_running_in(encoding, subjects):
        expected = [subject.expected(prompt) for prompt in subject.prompts]
        rounded = _rounded(subject.reference, _BITS[encoding])
        of_rounding = _error([reference_logits(rounded, prompt) for prompt in subject.prompts], expected)
        error = _error(logits_of(subject.load(encoding=encoding), subject.prompts), expected)
        allowed = min(_TIMES[encoding] * of_rounding, _UNRELATED)
        if not error <= allowed:
            raise ConformanceError(
                f"config {subject.name!r}: in {encoding} the logits are not what is left of the reference's",
                found=f"an error of {error:.2g}",
                allowed=f"{allowed:.2g}: the reference itself has {of_rounding:.2g} when its weights are rounded",
                cure="Where float32 is right, most likely the module reads a Linear's `weight` itself, or has "
                f"a copy of it. A model that cannot be quantized leaves {encoding} out of supported_encodings.",
            )


def _error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Returns how far a token's logits are off, of how far they are from the mean of all; the median over tokens."""
    theirs = torch.cat(list(expected))
    differences = (torch.cat(list(found)) - theirs).norm(dim=-1)
    return (differences / (theirs - theirs.mean(0)).norm(dim=-1)).median().item()


@torch.no_grad()
def _rounded(reference: nn.Module, bits: int) -> nn.Module:
    """Returns a copy whose matrices, but for embeddings, have the numbers that are left of them."""
    changed = copy.deepcopy(reference)
    embeddings = {id(module.weight) for module in changed.modules() if isinstance(module, nn.Embedding)}
    for parameter in changed.parameters():
        if parameter.dim() > 1 and parameter.shape[-1] % GROUP == 0 and id(parameter) not in embeddings:
            product = QuantizedProduct(parameter.flatten(0, -2), None, bits, torch.float32)
            parameter.copy_(product.dequantized(slice(None)).view_as(parameter))
    return changed
