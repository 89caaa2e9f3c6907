"""A tiny Mixtral: the decoder of the Mistral plugin, with experts in its layers."""

import re
from dataclasses import dataclass, fields

from tiny_models import TINY_LLAMA, randomize
from torch import nn
from transformers import MixtralConfig as HuggingFaceConfig
from transformers import MixtralForCausalLM as Reference

from pipezoo_core.decoder import DecoderPipelineModel
from pipezoo_core.layers import Experts, Router, Routing
from pipezoo_mistral.config import MistralConfig
from pipezoo_mistral.model import MistralForCausalLM

NAMES = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}


@dataclass(frozen=True, kw_only=True)
class MixtralConfig(MistralConfig):
    num_experts: int
    top_k: int

    @classmethod
    def from_huggingface(cls, config):
        plain = MistralConfig.from_huggingface(config)
        values = {field.name: getattr(plain, field.name) for field in fields(MistralConfig)}
        return cls(**values, num_experts=config.num_local_experts, top_k=config.num_experts_per_tok)


class Mixture(nn.Module):
    def __init__(self, config):
        super().__init__()
        sizes = (config.hidden_size, config.intermediate_size)
        routing = Routing(num_experts=config.num_experts, top_k=config.top_k, normalize=True)
        self.gate = Router(config.hidden_size, routing)
        self.experts = Experts(*sizes, config.num_experts, config.top_k, config.activation)

    def forward(self, x):
        return self.experts(x, *self.gate(x))


class MixtralForCausalLM(MistralForCausalLM):
    def __init__(self, config, backends):
        super().__init__(config, backends)
        for layer in self.model.layers:
            layer.mlp = Mixture(config)


class MixtralPipelineModel(DecoderPipelineModel):
    config_class = MixtralConfig
    module_class = MixtralForCausalLM


def adapt(tensors, config):
    def renamed(name):
        return re.sub(r"\bw[123]\b", lambda found: NAMES[found[0]], name.replace("block_sparse_moe", "mlp"))

    return {renamed(name): tensor for name, tensor in tensors.items()}


def make_mixtral(folder, **changes):
    """Returns transformers' model, saved, and what pipezoo's is loaded from."""
    sizes = {**TINY_LLAMA, "num_local_experts": 6, "num_experts_per_tok": 3, "head_dim": 8, **changes}
    reference = randomize(Reference(HuggingFaceConfig(**sizes)))
    reference.save_pretrained(folder)
    return reference, (MixtralPipelineModel, folder, reference.config, adapt)
