"""The gated delta rule: a matrix per head that forgets, and learns what it does not know yet.

Yang, Kautz and Hatamizadeh, 2024: "Gated Delta Networks: Improving Mamba2 with Delta Rule". The reference
implementation is transformers' `modeling_qwen3_next`.

Shape suffixes: T rows, B requests, H heads, C rows of a chunk, K key size, V value size, S slots.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipezoo_core.errors import UnsupportedModelError
from pipezoo_core.native import NativeKernels
from pipezoo_core.recurrence.base import StateStep
from pipezoo_core.recurrence.chunks import chunks, left_of_states

__all__ = ["GatedDeltaRule", "gated_delta_rule"]

_LEAST = 1e-6  # added to the sum of squares of a query or key


class GatedDeltaRule(nn.Module):
    """The gated delta rule with what its gates are made of: queries and keys of length 1, decay and strength.

    With q, k and v of a head, and numbers a and b for it, S forgets by `exp(-exp(A_log) · softplus(a + dt_bias))`, and
    learns with a strength of `sigmoid(b)`: see `gated_delta_rule`.

    Args:
        num_key_heads: heads of queries, and as many of keys.
        num_heads: heads of values; each key head serves as many of them in a row.
        key_size: numbers per head of queries and keys.
        value_size: numbers per head of values and of the result.

    Raises:
        UnsupportedModelError: the key heads cannot serve the others evenly.
    """

    keeps_float32 = ("A_log", "dt_bias")

    def __init__(self, num_key_heads: int, num_heads: int, key_size: int, value_size: int) -> None:
        super().__init__()
        if num_key_heads < 1 or num_heads % num_key_heads:
            raise UnsupportedModelError(
                "the heads of a gated delta rule do not fit",
                found=f"{num_key_heads} key heads, {num_heads} value heads",
                allowed="as many value heads for each key head",
            )
        self.A_log = nn.Parameter(torch.empty(num_heads))
        self.dt_bias = nn.Parameter(torch.empty(num_heads))
        self.sizes = [num_key_heads * key_size, num_key_heads * key_size, num_heads * value_size]
        self._num_key_heads, self._key_size, self._value_size = num_key_heads, key_size, value_size
        self._kernels: NativeKernels | None = None

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """Of one request's state."""
        return len(self.A_log), self._key_size, self._value_size

    def forward(self, qkv: Tensor, a_TH: Tensor, b_TH: Tensor, state: Tensor, step: StateStep) -> Tensor:
        """Returns what the rows read of their states, [T, H · V], of the dtype of `qkv`, and changes these.

        Args:
            qkv: [T, sum(sizes)]: queries, keys and values.
            a_TH: of the decay.
            b_TH: of the strength.
            state: float32 [S, H, K, V].
            step: which slots, and which rows are whose.
        """
        if self._kernels is not None:
            decay = (self.A_log, self.dt_bias)
            return self._kernels.gated_delta_rule(qkv, (a_TH, b_TH), decay, state, step, self._num_key_heads)
        parts = zip(qkv.float().split(self.sizes, -1), (self._key_size, self._key_size, self._value_size), strict=True)
        q, k, v = (part.unflatten(-1, (-1, size)) for part, size in parts)
        num_served = len(self.A_log) // self._num_key_heads
        q, k = (_normalized(x).repeat_interleave(num_served, dim=1) for x in (q, k))
        decay_TH = -self.A_log.exp() * F.softplus(a_TH.float() + self.dt_bias)
        y = gated_delta_rule(q.mul_(self._key_size**-0.5), k, v, decay_TH, b_TH.float().sigmoid(), state, step)
        return y.flatten(1).to(qkv.dtype)

    def compute_with(self, kernels: NativeKernels) -> None:
        """Computes with the native kernels from now on; the parameters stay where they are."""
        self._kernels = kernels


def gated_delta_rule(
    q_THK: Tensor, k_THK: Tensor, v_THV: Tensor, decay_TH: Tensor, beta_TH: Tensor, state_SHKV: Tensor, step: StateStep
) -> Tensor:
    """Returns `Sᵀq` of each row and head, after S has become `exp(decay) · S`, and then `S + k (beta · (v - Sᵀk))ᵀ`.

    Args:
        q_THK: the requests' rows one after another; all float32.
        k_THK: likewise.
        v_THV: likewise.
        decay_TH: at most 0.
        beta_TH: from 0 to 1.
        state_SHKV: float32. Slots that the step writes are changed.
        step: which slots, and which rows are whose.

    Returns:
        float32 [T, H, V].
    """
    rows, y_THV = (q_THK, k_THK, v_THV, decay_TH, beta_TH), torch.empty_like(v_THV)
    for chunk, state_HKV in chunks(state_SHKV, step):
        q, k, v, decay, beta = (x[chunk].transpose(0, 1) for x in rows)
        y_THV[chunk] = _chunk(q, k, v, decay, beta, state_HKV)
    return y_THV


def _chunk(q_HCK: Tensor, k_HCK: Tensor, v_HCV: Tensor, decay_HC: Tensor, beta_HC: Tensor, state_HKV: Tensor) -> Tensor:
    """Computes some rows of one request together (section 3.3 of the paper), and changes the state.

    What row i learns depends on what earlier ones have learned, where g_i is how much is left of S by then:
    `u_i = beta_i (v_i - g_i Sᵀk_i - Σ_{j<i} g_i / g_j (k_i·k_j) u_j)`. These are the equations of a triangular matrix.

    Returns:
        [C, H, V].
    """
    left_HCC, left_HC1 = left_of_states(decay_HC)
    beta_HC1 = beta_HC.unsqueeze(-1)
    overlap_HCC = beta_HC1 * left_HCC * (k_HCK @ k_HCK.mT)
    new_HCV = beta_HC1 * (v_HCV - left_HC1 * (k_HCK @ state_HKV))
    learned_HCV = torch.linalg.solve_triangular(overlap_HCC, new_HCV, upper=False, unitriangular=True)
    y_HCV = left_HC1 * (q_HCK @ state_HKV) + (left_HCC * (q_HCK @ k_HCK.mT)) @ learned_HCV
    to_end_HC1 = left_HCC[:, -1].unsqueeze(-1)
    state_HKV.mul_(left_HC1[:, -1:]).baddbmm_((to_end_HC1 * k_HCK).mT, learned_HCV)
    return y_HCV.transpose(0, 1)


def _normalized(x: Tensor) -> Tensor:
    return x * (x.square().sum(-1, keepdim=True) + _LEAST).rsqrt()
