"""What transformers calls for attention: once to find out what its layers need, then to compute it on pages.

transformers looks a function up by the name in its config, for attention, for masks and for mixtures of experts. Two
names are registered: `ASKING`, whose functions note the calls, and `PAGED`, which has no masks, so that transformers
makes none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipezoo_core.attention import Attention, Rotation
from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.kv_cache import KVCacheInputs
from pipezoo_transformers.experts import compute_experts
from pipezoo_transformers.masks import MaskFunction

__all__ = ["ASKING", "HANDLER", "NUM_CHOSEN", "PAGED", "AttentionCall", "Mask", "PagedCalls", "register"]

ASKING, PAGED = "pipezoo_asking", "pipezoo_paged"
HANDLER = "pipezoo_handler"
"""The attribute of an attention module that answers its calls."""
NUM_CHOSEN = "pipezoo_num_chosen"
"""The attribute of a mixture of experts that was asked: how many it computes of each token."""

_WITHOUT_EFFECT = {
    "cache_position", "cu_seq_lens_k", "cu_seq_lens_q", "deterministic", "dropout", "is_causal", "max_length_k",
    "max_length_q", "output_attentions", "output_hidden_states", "output_router_logits", "position_ids", "return_dict",
    "use_cache",
}  # fmt: skip
_KNOWN = {"s_aux", "scaling", "sliding_window", "softcap"}


class Mask:
    """What transformers' mask function and its size were, in place of a mask. Nothing can be computed with it.

    Args:
        function: tells for two positions whether one sees the other.
        size: of a window or of chunks; None where there is none.
    """

    def __init__(self, function: MaskFunction, size: int | None) -> None:
        self.function = function
        self.size = size

    def _refuse(self, *_: Any) -> Any:
        raise UnsupportedModelError("the model computes with its attention mask", allowed="handing it on to attention")

    __add__ = __getattr__ = __getitem__ = __mul__ = __radd__ = __rmul__ = _refuse


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCall:
    """One call of attention, as transformers makes it.

    Attributes:
        module: that calls.
        query: [1, num_heads, T, head_dim].
        key: likewise.
        value: likewise.
        mask: None where the module gets none.
        keywords: the others that mean something, `scaling` among them.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Mask | None
    keywords: dict[str, Any]


class PagedCalls:
    """Computes the calls of one attention module on pages, each call of a step on pages of its own.

    Args:
        attentions: of the calls, in their order.
    """

    def __init__(self, attentions: Sequence[Attention]) -> None:
        self._attentions = attentions
        self._kv: KVCacheInputs[Any] | None = None
        self._num_made = 0
        self._unrotated: tuple[Tensor, Tensor, Rotation] | None = None

    def begin(self, kv: KVCacheInputs[Any]) -> None:
        """Takes the view of the cache of the step that follows."""
        self._kv, self._num_made = kv, 0

    def rotate(self, query: Tensor, key: Tensor, rotation: Rotation) -> None:
        """Takes the rotation of queries and keys with which it will be called."""
        self._unrotated = query, key, rotation

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None) -> Tensor:
        """Maps queries [1, N, T, D], keys and values to [1, T, N, value size]."""
        assert self._kv is not None
        attention = self._attentions[self._num_made]
        self._num_made += 1
        dtype = self._kv.key_pages[attention.layer_idx].dtype  # some models rotate in float32
        rotation: Rotation | None = None
        if self._unrotated is not None:
            q, k, (cos, sin) = self._unrotated
            assert q is query, "what is rotated goes to attention: see `rotations`"
            assert k is key
            rotation, self._unrotated = (cos.to(dtype), sin.to(dtype)), None
        q, k, v = (x[0].transpose(0, 1).flatten(1).to(dtype) for x in (query, key, value))
        result = attention(q, k, v, self._kv, rotation, None if sinks is None else sinks.flatten().to(dtype))
        return result.unflatten(-1, (query.shape[1], -1)).unsqueeze(0)


def register() -> None:
    """Makes both names known to transformers."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(ASKING, _note)
    ALL_ATTENTION_FUNCTIONS.register(PAGED, _attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(ASKING, _describe)
    ALL_EXPERTS_FUNCTIONS.register(ASKING, _note_experts)
    ALL_EXPERTS_FUNCTIONS.register(PAGED, compute_experts)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, **keywords: Any
) -> tuple[Tensor, None]:
    del attention_mask
    handler: PagedCalls = getattr(module, HANDLER)
    return handler(query, key, value, keywords.get("s_aux")), None


def _note(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **keywords: Any
) -> tuple[Tensor, None]:
    told = {name: value for name, value in keywords.items() if value is not None and name not in _WITHOUT_EFFECT}
    unknown = sorted(told.keys() - _KNOWN)
    if unknown:
        raise UnsupportedModelError(
            f"the model's {type(module).__name__} asks attention for what it cannot do", found=unknown
        )
    if attention_mask is not None and not isinstance(attention_mask, Mask):
        raise UnsupportedModelError(
            f"the model's {type(module).__name__} adds numbers of its own to the scores",
            allowed="a mask of transformers",
        )
    is_causal = keywords.get("is_causal", getattr(module, "is_causal", True))
    if attention_mask is None and is_causal is False:
        raise UnsupportedModelError(f"the model's {type(module).__name__} sees later tokens")
    getattr(module, HANDLER).append(
        AttentionCall(
            module=module,
            query=query,
            key=key,
            value=value,
            mask=attention_mask,
            keywords=told,
        )
    )
    return value.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None


def _note_experts(module: nn.Module, hidden: Tensor, indices: Tensor, _: Tensor) -> Tensor:
    object.__setattr__(module, NUM_CHOSEN, indices.shape[-1])
    return torch.zeros_like(hidden)


def _describe(*, mask_function: MaskFunction, local_size: int | None = None, **_: Any) -> Mask:
    return Mask(mask_function, local_size)
