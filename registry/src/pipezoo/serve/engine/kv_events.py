"""What happens to pages of the KV cache, in the words and the form of vLLM's KV events, which routers read.

Source: `vllm/distributed/kv_events.py`, since its events are maps (vLLM #42892). A batch is `[ts, events, rank]`, with

    {"type": "BlockStored", "block_hashes": [5, 6], "parent_block_hash": 4, "token_ids": […], "block_size": 16, …}

Their blocks are our pages. A hash is the first 8 bytes of ours, as a number.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from pipezoo_core.context import TextContext
from pipezoo_core.errors import InvalidSettingError
from pipezoo_core.kv_cache import KVGroup, PagedKVCacheManager
from pipezoo_core.paging import Claim

__all__ = [
    "AllBlocksCleared",
    "BlockRemoved",
    "BlockStored",
    "KVEvent",
    "KVEventBatch",
    "PageRecorder",
    "all_cleared",
    "check_pages_suffice",
]


class BlockStored(msgspec.Struct, tag=True, omit_defaults=True):
    """Pages can be found that follow each other.

    Attributes:
        block_hashes: one for each page.
        parent_block_hash: of the page before the first one; None where there is none.
        token_ids: of all pages.
        block_size: tokens of a page.
        lora_id: none is ever told; readers want the field.
        medium: `GPU`, or None for the memory of a CPU, which readers take for no slower kind.
        lora_name: the adapter that the pages are of.
        extra_keys: for each page what else its hash is made of: adapter and `cache_salt`; None where nothing is.
        group_idx: which group of layers the pages are of.
        kv_cache_spec_kind: how these attend.
        kv_cache_spec_sliding_window: how many tokens a token sees in them.
    """

    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[list[str] | None]
    group_idx: int
    kv_cache_spec_kind: str
    kv_cache_spec_sliding_window: int | None = None


class BlockRemoved(msgspec.Struct, tag=True, omit_defaults=True):
    """Pages cannot be found any more; the attributes are those of `BlockStored`."""

    block_hashes: list[int]
    medium: str | None
    group_idx: int


class AllBlocksCleared(msgspec.Struct, tag=True):
    """No page can be found any more."""


KVEvent: TypeAlias = BlockStored | BlockRemoved | AllBlocksCleared


class KVEventBatch(msgspec.Struct, array_like=True):
    """What has happened since the last batch.

    Attributes:
        ts: seconds since 1970.
        events: in their order.
        data_parallel_rank: of which replica.
    """

    ts: float
    events: list[KVEvent]
    data_parallel_rank: int


def all_cleared(rank: int) -> bytes:
    """Returns the batch that says of a replica that no page of it can be found any more."""
    return _batch([AllBlocksCleared()], rank)


def _batch(events: list[KVEvent], rank: int) -> bytes:
    return msgspec.msgpack.encode(KVEventBatch(time.time(), events, rank))


def check_pages_suffice(manager: PagedKVCacheManager) -> None:
    """Checks that whoever knows the pages knows which prefixes can be gone on from.

    Raises:
        InvalidSettingError: layers keep a state, and a prefix is of use only where there is one of its end.
    """
    if manager.params.states:
        raise InvalidSettingError(
            "KV events tell of pages, and layers of this model keep a state, without which pages are of no use",
            found="--kv-events-endpoint",
            cure="Serve the model without it.",
        )


class PageRecorder:
    """Writes down what happens to one replica's pages, a `PageObserver`. It begins with none.

    Args:
        manager: has the pages.
        rank: of the replica.
    """

    def __init__(self, manager: PagedKVCacheManager, rank: int) -> None:
        self._groups = manager.params.groups
        self._page_size = manager.params.page_size
        self._medium = "GPU" if manager.device_tensors[0].device.type == "cuda" else None
        self._rank = rank
        self._events: list[KVEvent] = [AllBlocksCleared()]
        self._growing: dict[int, BlockStored] = {}  # for each group the event that the next page may belong to
        manager.observe(self)

    @property
    def has_events(self) -> bool:
        """Whether anything has happened."""
        return bool(self._events)

    def taken(self) -> bytes:
        """Returns what has happened since the last time, a `KVEventBatch` as MessagePack."""
        events, self._events = self._events, []
        self._growing.clear()
        return _batch(events, self._rank)

    def on_stored(self, group: int, claim: Claim, hash_: bytes, context: TextContext) -> None:
        """Notes a page, with those before it where it follows them."""
        number = len(claim.hashes)
        tokens = context.tokens[number * self._page_size : (number + 1) * self._page_size]
        parent = _number(claim.hashes[-1]) if claim.hashes else None
        salt = context.sampling_params.cache_salt if number == 0 else None
        keys = [key for key in (context.lora, salt) if key is not None] or None
        event = self._growing.get(group)
        if event is None or event.block_hashes[-1] != parent:
            event = self._growing[group] = self._new_event(group, parent, context.lora)
            self._events.append(event)
        event.block_hashes.append(_number(hash_))
        event.token_ids += tokens
        event.extra_keys.append(keys)

    def _new_event(self, group: int, parent: int | None, lora: str | None) -> BlockStored:
        layers = self._groups[group]
        return BlockStored(
            block_hashes=[],
            parent_block_hash=parent,
            token_ids=[],
            block_size=self._page_size,
            lora_id=None,
            medium=self._medium,
            lora_name=lora,
            extra_keys=[],
            group_idx=group,
            kv_cache_spec_kind=_kind(layers),
            kv_cache_spec_sliding_window=layers.reach,
        )

    def on_removed(self, group: int, hashes: Sequence[bytes]) -> None:
        """Notes that pages are gone."""
        self._growing.pop(group, None)
        self._events.append(BlockRemoved([_number(hash_) for hash_ in hashes], self._medium, group))

    def on_cleared(self) -> None:
        """Notes that all are, of whatever group: each of them is told to forget its own at once."""
        self._growing.clear()
        if not self._events or not isinstance(self._events[-1], AllBlocksCleared):
            self._events.append(AllBlocksCleared())


def _number(hash_: bytes) -> int:
    return int.from_bytes(hash_[:8], "big")


def _kind(group: KVGroup) -> str:
    if group.chunk is not None:
        return "chunked_local_attention"
    if group.sliding_window is not None:
        return "sliding_window"
    return "full_attention" if group.value_dim else "mla_attention"
