"""transformers' own class as a module of pipezoo: its body in steps over pages, its head for the rows that are wanted.

Shape suffixes: T tokens of all requests in a row, H hidden size, R rows, V vocabulary.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pipezoo_core.attention import Attention, AttentionBackends
from pipezoo_core.decoder import DecoderPipelineModel
from pipezoo_core.kv_cache import KVCacheInputs
from pipezoo_transformers.config import TransformersConfig
from pipezoo_transformers.interface import HANDLER, PAGED, PagedCall
from pipezoo_transformers.outline import body_of, outline_of_transformers
from pipezoo_transformers.replacements import replace_layers

__all__ = ["TransformersForCausalLM", "TransformersPipelineModel"]


class TransformersForCausalLM(nn.Module):
    """Any causal language model of transformers, its parts under the names that transformers gives them."""

    def __init__(self, config: TransformersConfig, backends: AttentionBackends) -> None:
        super().__init__()
        model = outline_of_transformers(config.huggingface_config, PAGED, "eager")
        name, body = body_of(model)
        self._calls = [PagedCall(Attention(layer, backends)) for layer in range(len(config.names))]
        for module, call in zip(config.names, self._calls, strict=True):
            object.__setattr__(model.get_submodule(module), HANDLER, call)
        replace_layers(model)
        self._body = (body,)  # in a tuple, so that it has one name alone
        for child_name, child in model.named_children():
            self.add_module(child_name, child)
        self._hidden = _Hidden()
        model._modules[name] = self._hidden
        self._head = (model,)

    def forward(self, tokens_T: Tensor, kv: KVCacheInputs[Any]) -> Tensor:
        """Maps tokens [T] to hidden states [T, H]."""
        for call in self._calls:
            call.kv = kv
        positions_1T = kv.positions.unsqueeze(0)
        output = self._body[0](input_ids=tokens_T.unsqueeze(0), position_ids=positions_1T, use_cache=False)
        return output[0][0]

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Maps hidden states [R, H] to logits [R, V], by what transformers does after the last layer."""
        self._hidden.rows = hidden.unsqueeze(0)
        return self._head[0](inputs_embeds=self._hidden.rows, use_cache=False).logits[0]


class _Hidden(nn.Module):
    """Takes the body's place where only the head is wanted: it gives what the body gave before.

    Attributes:
        rows: hidden states, [1, R, H].
    """

    rows: Tensor

    def forward(self, *_: Any, **__: Any) -> _Output:
        """Returns the rows as a body's output."""
        return _Output(self.rows)


class _Output:
    """The output of a body, with nothing in it but hidden states."""

    def __init__(self, rows: Tensor) -> None:
        self.last_hidden_state = rows

    def __getitem__(self, index: int | slice) -> Any:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        return None


class TransformersPipelineModel(DecoderPipelineModel):
    """A decoder of transformers as a pipeline runs it."""

    config_class = TransformersConfig
    module_class = TransformersForCausalLM
