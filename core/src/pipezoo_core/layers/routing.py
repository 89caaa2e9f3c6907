"""Which experts of a mixture each token goes to, and with which weights: a pure function of the router's logits.

Shape suffixes: T tokens of all requests in a row, E experts, K chosen ones, G groups of experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipezoo_core.errors import UnsupportedModelError

__all__ = ["Routing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """The choice of experts that transformers computes, in float32.

    | family | what differs from the defaults |
    | --- | --- |
    | Mixtral, MiniMax | normalize |
    | Qwen2-MoE, Qwen3-MoE, OLMoE | normalize where `norm_topk_prob` |
    | gpt-oss, Granite | softmax_of_chosen |
    | DeepSeek-V2 | scale; where `group_limited_greedy`, groups |
    | DeepSeek-V3, GLM-4.5, dots.llm1 | sigmoid, normalize as Qwen, scale, groups, group_best=2, a correction |
    | LFM2-MoE | sigmoid, normalize as Qwen, added_to_sum=1e-6, scale, a correction |

    Attributes:
        num_experts: E.
        top_k: K.
        scores: what a token's weights are made of: the softmax or the sigmoid of its logits, or the softmax of the
            chosen ones alone.
        normalize: whether the weights of a token are divided by their sum.
        added_to_sum: a small number that is added to that sum before.
        scale: of the weights.
        num_groups: G, of experts side by side; only those of the best groups can be chosen.
        num_chosen_groups: how many groups these are.
        group_best: a group is as good as the sum of so many of its best scores.

    Raises:
        UnsupportedModelError: there are not as many experts to choose from.
    """

    num_experts: int
    top_k: int
    scores: Literal["softmax", "sigmoid", "softmax_of_chosen"] = "softmax"
    normalize: bool = False
    added_to_sum: float = 0.0
    scale: float = 1.0
    num_groups: int = 1
    num_chosen_groups: int = 1
    group_best: int = 1

    def __post_init__(self) -> None:
        size = self.num_experts // max(1, self.num_groups)
        is_divided = self.num_groups >= 1 and size * self.num_groups == self.num_experts
        has_groups = 1 <= self.num_chosen_groups <= self.num_groups and 1 <= self.group_best <= size
        if not (is_divided and has_groups and 1 <= self.top_k <= self.num_chosen_groups * size):
            raise UnsupportedModelError(
                "the config's experts cannot be chosen as it says",
                found=f"{self.top_k} of {self.num_experts} experts, out of {self.num_chosen_groups} of "
                f"{self.num_groups} groups by their {self.group_best} best",
                allowed="groups of equal size that have as many experts",
            )

    def __call__(self, logits_TE: Tensor, correction_E: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the chosen experts, int64 [T, K], the best first, and their weights, float32 [T, K].

        Of equal scores the first expert's is the better one, whatever else is in the batch.

        Args:
            logits_TE: of the router.
            correction_E: added to the scores for the choice, and not to the weights.
        """
        scores_TE = logits_TE.float()
        if self.scores == "softmax":
            scores_TE = scores_TE.softmax(-1)
        elif self.scores == "sigmoid":
            scores_TE = scores_TE.sigmoid()
        ranked_TE = scores_TE if correction_E is None else scores_TE + correction_E.float()
        if self.num_groups > 1:
            ranked_TE = self._of_best_groups(ranked_TE)
        indices_TK = _best(ranked_TE, self.top_k)
        weights_TK = scores_TE.gather(-1, indices_TK)
        if self.scores == "softmax_of_chosen":
            weights_TK = weights_TK.softmax(-1)
        if self.normalize:
            weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + self.added_to_sum)
        return indices_TK, weights_TK * self.scale

    def _of_best_groups(self, ranked_TE: Tensor) -> Tensor:
        groups_TGE = ranked_TE.unflatten(-1, (self.num_groups, -1))
        best_TG = groups_TGE.topk(self.group_best, dim=-1).values.sum(-1)
        is_chosen_TG = torch.zeros_like(best_TG, dtype=torch.bool)
        is_chosen_TG.scatter_(-1, _best(best_TG, self.num_chosen_groups), True)
        return groups_TGE.masked_fill(~is_chosen_TG.unsqueeze(-1), float("-inf")).flatten(-2)


def _best(numbers: Tensor, count: int) -> Tensor:
    """Returns where the greatest numbers of each row are; torch's `topk` orders equal ones as it likes."""
    return numbers.sort(dim=-1, descending=True, stable=True).indices[..., :count]
