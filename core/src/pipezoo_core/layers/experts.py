"""A mixture of experts: feed-forward layers of which each token goes through a few (Shazeer et al., 2017).

Shape suffixes: T tokens of all requests in a row, H hidden size, K chosen experts, P = T · K pairs of a token and one
of its experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate, pairwise

from torch import Tensor, nn

from pipezoo_core.distributed import TensorParallelGroup
from pipezoo_core.errors import InvalidSettingError
from pipezoo_core.layers.activations import ClampedGate
from pipezoo_core.layers.alive import KernelUse
from pipezoo_core.layers.linear import ColumnParallelLinear, RowParallelLinear
from pipezoo_core.layers.mlp import MLP, GatedMLP
from pipezoo_core.layers.split import Shard

__all__ = ["Expert", "Experts", "UngatedExpert"]

_INDEX_BYTES = 8


class Expert(GatedMLP):
    """One of a mixture. Its layers are fused unless adapters may change experts: see `use_linear_backend`."""

    @property
    def can_be_joined(self) -> bool:
        """Whether one kernel can compute all experts that are like this one."""
        return self.can_be_gated and not (self.gate_up_proj.merged.reordered or self.down_proj.reordered)


class UngatedExpert(MLP):
    """One of a mixture whose experts have no gates.

    Attributes:
        is_fused: whether its layers may become a part of something: see `use_linear_backend`.
    """

    up_proj: ColumnParallelLinear
    down_proj: RowParallelLinear
    is_fused = False

    @property
    def products(self) -> tuple[Callable[[Tensor], Tensor] | None, Callable[[Tensor], Tensor] | None]:
        """What computes the first layer where it is fused, and what the last, where it is not torch."""
        return self.up_proj.product if self.is_fused else None, self.down_proj.product

    @property
    def can_be_joined(self) -> bool:
        """Whether one kernel can compute all experts that are like this one."""
        is_even = self.up_proj.in_features % 2 == 0 == self.down_proj.in_features % 2
        is_whole = len(self.up_proj.stored) < 2 and not (self.up_proj.reordered or self.down_proj.reordered)
        return self.native_activation is not None and is_even and is_whole


class Experts(nn.ModuleList):
    """The sum of what its chosen experts make of a token, times their weights.

    A checkpoint's tensors are `3.gate_proj.weight`, `3.up_proj.weight` and `3.down_proj.weight` of expert 3, below the
    name of the layer, the first where experts have gates; a weight adapter makes these of stacked ones with
    `LazyTensor.unstacked`. They are loaded and converted expert by expert. The ranks of a group divide the experts, and
    add their sums.

    Args:
        hidden_size: numbers per input and output row.
        intermediate_size: numbers per row inside an expert.
        num_experts: of the layer, on all ranks together.
        top_k: experts per token.
        activation: see `GatedMLP`; without gates a name alone, see `MLP`.
        bias: likewise.
        gated: whether experts have gates.

    Attributes:
        top_k: experts per token.
        first: the number of this rank's first expert.
        shards: empty: a rank has some experts whole, and nothing of the others.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        num_experts: int,
        top_k: int,
        activation: str | ClampedGate,
        *,
        bias: bool = False,
        gated: bool = True,
    ) -> None:
        kind: Callable[..., Expert | UngatedExpert] = Expert if gated else UngatedExpert
        super().__init__(kind(hidden_size, intermediate_size, activation, bias=bias) for _ in range(num_experts))
        self.top_k = top_k
        self.shards: dict[str, Shard] = {}
        self._hidden_size = hidden_size
        self.first = 0
        self._group: TensorParallelGroup | None = None
        self._native: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
        self._telling: Callable[[Tensor], AbstractContextManager[object]] = nullcontext

    def forward(self, x_TH: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """Maps [T, H] to [T, H].

        What else is in the batch changes nothing but how many rows a product has: a token's sum is made in float32, in
        the order of its choices.

        Args:
            x_TH: rows.
            indices_TK: int64, of each row's experts.
            weights_TK: float32, of the experts.
        """
        compute = self._one_by_one if self._native is None else self._native
        y_TH = compute(x_TH, indices_TK, weights_TK)
        return y_TH if self._group is None else self._group.all_reduce(y_TH)

    @property
    def experts(self) -> list[Expert | UngatedExpert]:
        """This rank's experts."""
        return [expert for expert in self.children() if isinstance(expert, Expert | UngatedExpert)]

    def compute_with(self, native: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        """Computes this rank's sums with `native` from now on, which is called as `forward` is."""
        self._native = native

    def tell_rows(self, telling: Callable[[Tensor], AbstractContextManager[object]]) -> None:
        """Has each expert compute within `telling(rows)`, with the numbers, int64 [n], of the rows that it is given."""
        self._telling = telling

    def _one_by_one(self, x_TH: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> Tensor:
        products_PH = x_TH.new_zeros(indices_TK.numel(), self._hidden_size)
        for expert, pairs in self._sorted(indices_TK.flatten()):
            rows = pairs // self.top_k
            with self._telling(rows):
                products_PH[pairs] = expert(x_TH[rows])
        products_TKH = products_PH.unflatten(0, (-1, self.top_k))
        sum_TH = products_TKH[:, 0] * weights_TK[:, :1]
        for k in range(1, self.top_k):
            sum_TH += products_TKH[:, k] * weights_TK[:, k : k + 1]
        return sum_TH.to(x_TH.dtype)

    def _sorted(self, indices_P: Tensor) -> Iterator[tuple[nn.Module, Tensor]]:
        """Yields each expert that has tokens, with the numbers of its pairs.

        Two tokens whose experts are 5, 2 and 2, 7 are pairs 0 and 1, 2 and 3: expert 2 has the pairs 1 and 2.
        """
        order_P = indices_P.argsort(stable=True)
        counts = indices_P.bincount(minlength=self.first + len(self))[self.first :].tolist()
        before = int((indices_P < self.first).sum())
        for expert, (start, end) in zip(self.experts, pairwise(accumulate(counts, initial=before)), strict=False):
            if start < end:
                yield expert, order_P[start:end]

    def alive(self, kernels: KernelUse) -> list[int]:
        """See `Estimable`. All tokens may choose the same expert."""
        hidden, expert = self._hidden_size, self.experts[0]
        products, inner = self.top_k * hidden, expert.down_proj.in_features
        if kernels.is_native and kernels.fuse_experts and expert.can_be_joined:
            return [products + self.top_k * inner + hidden]  # one kernel has all of them, and its input
        indices = -(-3 * self.top_k * _INDEX_BYTES // kernels.itemsize)  # chosen, their order, and a product's rows
        while_summed = [products, indices, kernels.wide * hidden, kernels.wide * hidden]  # the sum and what it gets
        while_computed = [products, indices, hidden, *expert.alive(kernels.in_experts)]
        return max(while_summed, while_computed, key=sum)

    def shard(self, group: TensorParallelGroup) -> None:
        """Keeps this rank's experts, under their numbers."""
        num_experts = len(self)
        if num_experts < group.size:
            raise InvalidSettingError(
                "a mixture of the model has too few experts for so many devices",
                found=f"{group.size} devices",
                allowed=f"at most {num_experts}",
                cure="Load it with fewer devices.",
            )
        self._group = group
        self.first, end = (rank * num_experts // group.size for rank in (group.rank, group.rank + 1))
        for number in range(num_experts):
            if not self.first <= number < end:
                delattr(self, str(number))
