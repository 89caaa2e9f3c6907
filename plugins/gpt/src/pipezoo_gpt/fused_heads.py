"""The rows of a matrix in which queries, keys and values of each head lie side by side."""

from __future__ import annotations

from collections.abc import Iterator

from pipezoo_core.layers import Heads
from pipezoo_core.weights import LazyTensor

__all__ = ["divided_by_head"]

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
