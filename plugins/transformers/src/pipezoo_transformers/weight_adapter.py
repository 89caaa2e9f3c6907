"""A checkpoint's tensors by the names of transformers' modules, by transformers' own rules.

transformers renames most tensors, and makes one of several (a stack of experts) or several of one. The rules are its
`conversion_mapping`; here they are applied to tensors that are read when they are asked for.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipezoo_core.errors import UnsupportedCheckpointError
from pipezoo_core.weights import LazyTensor, without_redundant
from pipezoo_transformers.config import TransformersConfig
from pipezoo_transformers.config_key import ConfigKey
from pipezoo_transformers.expert_weights import of_list, one_by_one
from pipezoo_transformers.interface import PAGED
from pipezoo_transformers.outline import outline_of_transformers

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.core_model_loading import WeightTransform

__all__ = ["adapt_safetensors"]


def adapt_safetensors(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """Renames and converts as transformers does; drops what it drops, and weights that are tied to others.

    Experts that core computes are left one by one, or become so.

    Raises:
        UnsupportedCheckpointError: transformers' conversion fails over the tensors' shapes.
    """
    names = _names(ConfigKey(config))
    groups, adapted = names.sorted(tensors)
    for target, group in groups.items():
        mixture = names.mixtures.get(target.rpartition(".")[0])
        as_it_lies = None if mixture is None else of_list(target, group.rule, group.sources, mixture)
        adapted |= group.converted(target, names.model) if as_it_lies is None else as_it_lies
    adapted = one_by_one(adapted, names.mixtures)
    ties = names.ties
    adapted = {name: tensor for name, tensor in adapted.items() if name == "lm_head.weight" or name not in ties}
    return without_redundant(adapted, config, embedding=ties.get("lm_head.weight", "lm_head.weight"))


@dataclass(frozen=True, slots=True)
class _Group:
    """Tensors of a checkpoint that one rule makes others of.

    Attributes:
        rule: of transformers.
        sources: names, the pattern of the rule that they fit, and tensors.
    """

    rule: WeightTransform
    sources: list[tuple[str, str, LazyTensor]]

    def converted(self, target: str, model: PreTrainedModel) -> dict[str, LazyTensor]:
        """Returns what the rule makes of them, not read yet."""
        try:
            outlines = self._apply(
                target,
                model,
                [torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for _, _, tensor in self.sources],
            )
        except Exception as error:  # a rule may fail in any way over shapes that it does not expect
            raise UnsupportedCheckpointError(
                f"transformers cannot make {target!r} of the checkpoint's tensors",
                found=f"{type(error).__name__}: {error}"[:300],
                allowed="a checkpoint that fits its config.json",
            ) from error
        dtype = self.sources[0][2].dtype

        def lazy(name: str) -> LazyTensor:
            outline = outlines[name]
            return LazyTensor(
                tuple(outline.shape),
                dtype,
                lambda rows: self.load(target, model)[name][rows],
                numbers_at_once=outline.numel(),  # all, so that it is converted once
            )

        return {name: lazy(name) for name in outlines}

    def load(self, target: str, model: PreTrainedModel) -> dict[str, Tensor]:
        """Reads the tensors and applies the rule."""
        return self._apply(target, model, [tensor.load() for _, _, tensor in self.sources])

    def _apply(self, target: str, model: PreTrainedModel, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        rule: Any = copy.deepcopy(self.rule)
        for (name, pattern, _), tensor in zip(self.sources, tensors, strict=True):
            rule.add_tensor(target, name, pattern, tensor)
        made = rule.convert(target, model=model, config=model.config)
        return {name: tensor[0] if isinstance(tensor, list) else tensor for name, tensor in made.items()}


class _Names:
    """The names of a model's parameters, and what transformers makes of those in its checkpoints."""

    def __init__(self, config: PretrainedConfig) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        self.model = outline_of_transformers(config, PAGED)
        self.mixtures = TransformersConfig.from_huggingface(config).found.mixtures
        rules = get_model_conversion_mapping(self.model)
        self._renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        self._converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        self._parameters = dict(self.model.named_parameters(remove_duplicate=False))
        patterns = [
            *(self.model._keys_to_ignore_on_load_unexpected or ()),
            r"(^|\.)position_ids$",
            r"\.attn\.(masked_)?bias$",
        ]
        self._ignored = re.compile("|".join(f"({pattern})" for pattern in patterns))

    @property
    def ties(self) -> dict[str, str]:
        """The parameters that are others', and which these are."""
        ties: dict[str, str] = self.model.all_tied_weights_keys
        return ties

    def sorted(self, tensors: Mapping[str, LazyTensor]) -> tuple[dict[str, _Group], dict[str, LazyTensor]]:
        """Returns groups of tensors that become others, and the tensors that get another name at most."""
        from transformers.core_model_loading import dot_natural_key

        rule_of = {pattern: rule for rule in self._converters for pattern in rule.source_patterns}
        groups: dict[str, _Group] = {}
        renamed: dict[str, LazyTensor] = {}
        for name in sorted(tensors, key=dot_natural_key):
            new_name, pattern = self._renamed(name)
            if new_name in self._parameters and pattern is not None:
                group = groups.setdefault(new_name, _Group(rule_of[pattern], []))
                group.sources.append((name, pattern, tensors[name]))
            elif new_name in self._parameters or not self._ignored.search(name):
                renamed[new_name if new_name in self._parameters else name] = tensors[name]
        return groups, renamed

    def _renamed(self, name: str) -> tuple[str, str | None]:
        from transformers.core_model_loading import rename_source_key

        prefix = self.model.base_model_prefix
        new_name, pattern = rename_source_key(name, self._renamings, self._converters, prefix, self._parameters)
        if new_name not in self._parameters and name in self._parameters:
            return name, None
        return new_name, pattern


@lru_cache(maxsize=2)  # the matrices of a LoRA adapter come one at a time
def _names(key: ConfigKey) -> _Names:
    return _Names(key.config)
