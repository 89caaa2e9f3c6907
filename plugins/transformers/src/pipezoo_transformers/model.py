"""transformers' own class as a module of pipezoo: its body in steps over pages, its head for the rows that are wanted.

Shape suffixes: T tokens of all requests in a row, H hidden size, R rows, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipezoo_core.attention import Attention, AttentionBackends
from pipezoo_core.config import KVCacheConfig, PipelineConfig
from pipezoo_core.decoder import DecoderPipelineModel, kernel_use
from pipezoo_core.errors import InvalidSettingError
from pipezoo_core.kv_cache import KVCacheInputs, KVCacheParams
from pipezoo_core.weights import torch_dtype
from pipezoo_transformers.angles import RowsRotary
from pipezoo_transformers.body import Body
from pipezoo_transformers.config import TransformersConfig
from pipezoo_transformers.interface import HANDLER, PAGED, PagedCalls
from pipezoo_transformers.mixtures import RowsExperts
from pipezoo_transformers.outline import body_of, outline_of_transformers
from pipezoo_transformers.replacements import replace_layers
from pipezoo_transformers.rotations import leave_to_attention

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["TransformersForCausalLM", "TransformersPipelineModel"]


class TransformersForCausalLM(nn.Module):
    """Any causal language model of transformers, its parts under the names that transformers gives them."""

    def __init__(self, config: TransformersConfig, backends: AttentionBackends) -> None:
        super().__init__()
        model = outline_of_transformers(config.huggingface_config, PAGED)
        replace_layers(model, config.found.kept, config.found.merged, config.found.mixtures)
        attentions: dict[str, list[Attention]] = defaultdict(list)
        for layer, name in enumerate(config.found.names):
            attentions[name].append(Attention(layer, backends))
        self._calls = {name: PagedCalls(of_one) for name, of_one in attentions.items()}
        for name, calls in self._calls.items():
            object.__setattr__(model.get_submodule(name), HANDLER, calls)
        for name, function in config.found.rotations.items():
            leave_to_attention(model.get_submodule(name), function, self._calls[name])
        for name, angles in config.found.angles.items():
            model.set_submodule(name, RowsRotary(angles))
        self._model, self._body = (model,), Body(body_of(model))  # not as submodules, whose names would be others
        for name, child in model.named_children():
            self.add_module(name, child)

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        """Maps tokens [T] to hidden states [T, H]."""
        for calls in self._calls.values():
            calls.begin(kv)
        return self._body.hidden(tokens_T, kv.positions)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Maps hidden states [R, H] to logits [R, V], by what transformers does after the last layer."""
        with self._body.giving(hidden):
            return self._model[0](inputs_embeds=hidden.unsqueeze(0), use_cache=False).logits[0]


class TransformersPipelineModel(DecoderPipelineModel):
    """A decoder of transformers as a pipeline runs it."""

    config_class = TransformersConfig
    module_class = TransformersForCausalLM

    @classmethod
    def estimate_activation_memory(cls, pipeline_config: PipelineConfig, huggingface_config: PretrainedConfig) -> int:
        """Returns what core plans for the widest linear layers, and what a mixture of experts takes beyond it."""
        config, use = cls.config_class.from_huggingface(huggingface_config), kernel_use(pipeline_config)
        outline = cls._kept_outline(pipeline_config, huggingface_config)
        mixtures = (layer.most_alive(use) for layer in outline.modules() if isinstance(layer, RowsExperts))
        alive = max([config.found.in_experts, *mixtures])
        more = max(0, alive - 2 * config.intermediate_size)
        row = more * torch_dtype(pipeline_config.encoding).itemsize
        planned = super().estimate_activation_memory(pipeline_config, huggingface_config)
        return planned + pipeline_config.max_batch_tokens * row

    @classmethod
    def get_kv_params(
        cls,
        huggingface_config: PretrainedConfig,
        n_devices: int,
        kv_cache_config: KVCacheConfig,
        cache_dtype: torch.dtype,
    ) -> KVCacheParams:
        """Returns the shape of the cache.

        Raises:
            InvalidSettingError: there are several devices, among which transformers' classes cannot be divided.
        """
        if n_devices > 1:
            raise InvalidSettingError(
                "a model that runs by transformers' own class is computed on one device",
                found=f"{n_devices} devices",
                cure="Take one device, or data_parallel_degree for several replicas.",
            )
        return super().get_kv_params(huggingface_config, n_devices, kv_cache_config, cache_dtype)
