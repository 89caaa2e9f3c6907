"""Queries, keys and values in one matrix: head by head as in checkpoints, or sorted by part as in GGUF files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pipezoo_core.layers import Heads
from pipezoo_core.weights import LazyTensor, divided, renamed_from_gguf

__all__ = ["SORTED", "divided_by_head", "divided_from_gguf"]

SORTED = "qkv_proj"
"""What the matrix of a GGUF file is called, because an adapter's `query_key_value` has the order of checkpoints."""

_FUSED = "query_key_value"


def divided_by_head(name: str, tensor: LazyTensor, heads: Heads) -> dict[str, LazyTensor]:
    """Returns the rows of `query_key_value` as those of `q_proj`, `k_proj` and `v_proj`; another tensor as it is.

    Each key/value head has the rows of the query heads that it serves, its key's and its value's. Of four query heads
    and two others, each a row, they are q0 q1 k0 v0 q2 q3 k1 v1. A tensor of another number of rows is left as it is,
    to be reported as left over.

    Args:
        name: of the tensor.
        tensor: its rows.
        heads: of the layer.
    """
    if f".{_FUSED}." not in name or tensor.shape[0] != heads.queries.size + 2 * heads.keys.size:
        return {name: tensor}
    size, num_queries = heads.head_dim, heads.num_heads // heads.num_kv_heads
    group = (num_queries + 2) * size

    def rows(first: int, num_rows: int) -> Iterator[slice]:
        for start in range(first, tensor.shape[0], group):
            yield slice(start, start + num_rows)

    return {
        name.replace(_FUSED, "q_proj"): tensor.rows(*rows(0, num_queries * size)),
        name.replace(_FUSED, "k_proj"): tensor.rows(*rows(num_queries * size, size)),
        name.replace(_FUSED, "v_proj"): tensor.rows(*rows((num_queries + 1) * size, size)),
    }


def divided_from_gguf(
    tensors: Mapping[str, LazyTensor], heads: Heads, *, names: Mapping[str, str], layers: str
) -> dict[str, LazyTensor]:
    """Returns a GGUF file's tensors by the names of a module, the rows of `SORTED` as those of its three parts.

    All queries lie before all keys, and these before all values. A LoRA adapter's tensors have the names and the order
    of checkpoints already, and stay.

    Args:
        tensors: of a GGUF file, or an adapter's.
        heads: of the layers.
        names: as `renamed_from_gguf` takes them, with `SORTED` in that of `attn_qkv`.
        layers: what the module calls its layers.
    """
    parts = {"q_proj": heads.queries.size, "k_proj": heads.keys.size, "v_proj": heads.keys.size}
    found: dict[str, LazyTensor] = {}
    for name, tensor in renamed_from_gguf(tensors, names=names, layers=layers).items():
        found |= divided(name, tensor, SORTED, parts) if f".{SORTED}." in name else {name: tensor}
    return found
