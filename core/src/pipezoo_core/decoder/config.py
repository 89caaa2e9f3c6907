"""What a decoder-only model is: the typed config that a plugin reads from a Hugging Face config."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Self

from pipezoo_core.attention import AttentionSpec
from pipezoo_core.errors import CheckpointMismatchError, InvalidSettingError, UnsupportedModelError, shown
from pipezoo_core.interfaces import upper_bounded_default
from pipezoo_core.layers import Heads, Routing
from pipezoo_core.recurrence import StateSpec
from pipezoo_core.weights import LazyTensor

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["DecoderConfig"]

_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim",
    "max_seq_len",
)  # fmt: skip
_MAX_SIZE = 2**31 - 1  # products of two sizes and a few bytes stay below 2^64
_MAX_FLOAT32 = 2.0**128 * (1 - 2.0**-24)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig(abc.ABC):
    """What every decoder-only model has; a plugin's config adds what is its own.

    Attributes:
        vocab_size: rows of the embedding.
        hidden_size: numbers per token between layers.
        intermediate_size: numbers per token inside the feed-forward layer.
        num_layers: decoder layers.
        num_heads: query heads.
        num_kv_heads: key/value heads.
        head_dim: numbers per head.
        max_seq_len: the longest request the positions reach.
        max_shareable_prompt: see `KVCacheParams`.

    Raises:
        UnsupportedModelError: a size is not positive, a number of the config or of a part of it is one that is never
            computed with (a whole one below 0 or above 2³¹, one that no float32 holds), or the key/value heads cannot
            share the query heads evenly.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_seq_len: int
    max_shareable_prompt: int | None = None

    def __post_init__(self) -> None:
        for name in _SIZES:
            size = getattr(self, name)
            if type(size) is not int:
                raise UnsupportedModelError(f"the config's {name} is no whole number", found=shown(size))
            if size < 1:
                raise UnsupportedModelError(f"the config's {name} is not positive", found=size, allowed="at least 1")
        for name, number in chain.from_iterable(map(_numbers, _parts(self))):
            least, most = (0, _MAX_SIZE) if isinstance(number, int) else (-_MAX_FLOAT32, _MAX_FLOAT32)
            if not least <= number <= most:  # NaN is not, either
                raise UnsupportedModelError(
                    f"the config's {name} is that of no model", found=shown(number), allowed=f"{least} to {most}"
                )
        if self.num_heads % self.num_kv_heads:
            raise UnsupportedModelError(
                "the config's query heads cannot be shared evenly among its key/value heads",
                found=f"{self.num_heads} heads, {self.num_kv_heads} key/value heads",
                allowed=f"a divisor of {self.num_heads} as key/value heads",
            )

    @classmethod
    @abc.abstractmethod
    def from_huggingface(cls, config: PretrainedConfig) -> Self:
        """Reads a Hugging Face config.

        Raises:
            UnsupportedModelError: it asks for something the model cannot do.
        """

    def longest_request(self, max_length: int | None) -> int:
        """Returns `max_length`, or where it is None the longest request the positions reach.

        Raises:
            InvalidSettingError: it is longer than that.
        """
        try:
            return upper_bounded_default(upper_bound=self.max_seq_len, default=max_length)
        except ValueError as error:
            raise InvalidSettingError(
                "max_length is above what the model can do", found=max_length, allowed=f"at most {self.max_seq_len}"
            ) from error

    def check_against(self, tensors: Mapping[str, LazyTensor]) -> None:
        """Checks that a checkpoint can be as large as the config says, before anything of that size is made.

        Raises:
            CheckpointMismatchError: there are more layers than tensors, or a size is above every tensor's.
        """
        if self.num_layers > len(tensors):
            raise CheckpointMismatchError(missing=[f"most of {self.num_layers} layers, with {len(tensors)} tensors"])
        largest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
        sizes = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_heads × head_dim": self.num_heads * self.head_dim,
        }
        for part in _parts(self):
            if isinstance(part, Routing):
                sizes["num_experts"] = part.num_experts  # rows of a router
        too_large = [f"{name}: at most {largest} -> {size}" for name, size in sizes.items() if size > largest]
        if too_large:
            raise CheckpointMismatchError(wrong_shape=too_large)

    @property
    def attention(self) -> AttentionSpec:
        """What the attention layers compute, where they are alike: all of the past, by Vaswani et al.'s formula.

        A config of other attention overrides this, or `layers` where they differ.
        """
        return AttentionSpec(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            scale=self.head_dim**-0.5,
        )

    @property
    def layers(self) -> tuple[AttentionSpec | StateSpec | None, ...]:
        """What the attention of each layer computes, or what state it keeps instead, in the order of the layers.

        None of a layer that does neither.
        """
        return (self.attention,) * self.num_layers

    @property
    def states(self) -> tuple[StateSpec | None, ...]:
        """What each layer keeps instead of pages, None where it has pages; empty where all do."""
        states = tuple(spec if isinstance(spec, StateSpec) else None for spec in self.layers)
        return states if any(states) else ()

    @property
    def heads(self) -> Heads:
        """The attention heads, as dimensions that devices can divide."""
        return Heads(self.num_heads, self.num_kv_heads, self.head_dim)


def _parts(config: object) -> Iterator[object]:
    """Yields a config, and the parts that it and they consist of.

    They are frozen. A config of transformers, which may be a field, too, is not: its numbers are not computed with.
    """
    yield config
    assert is_dataclass(config)
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value) and getattr(value, "__dataclass_params__").frozen:  # noqa: B009 - mypy knows no such name
            yield from _parts(value)


def _numbers(part: Any) -> Iterator[tuple[str, int | float]]:
    """Yields the numbers of a config or a part, by name."""
    for field in fields(part):
        if isinstance(value := getattr(part, field.name), int | float):
            yield field.name, value
