"""GGUF files of gpt-oss, written as llama.cpp's converter does, against transformers on the numbers of the file."""

import gguf
import numpy as np
import pytest
import torch
from families import assert_equal_logits, load_gguf
from gguf_files import TOKENS, write_gguf
from gpt_oss.tiny_gpt_oss import make

from pipezoo import registry
from pipezoo_core.errors import CorruptCheckpointError
from pipezoo_core.request import TextGenerationRequest
from pipezoo_core.weights import open_gguf
from pipezoo_gpt_oss.config import config_from_gguf
from pipezoo_gpt_oss.plugin import pipezoo_architectures

pytestmark = pytest.mark.matrix

(ARCHITECTURE,) = pipezoo_architectures()
F32 = gguf.GGMLQuantizationType.F32
NAMES = {
    "self_attn.sinks": "attn_sinks",
    "post_attention_layernorm": "post_attention_norm",
    "mlp.router": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
}


class Converted:
    """A model with the tensors, and the names, that the converter makes of its own."""

    def __init__(self, reference):
        self.config = reference.config
        self._reference = reference

    def state_dict(self):
        found = {}
        for name, tensor in self._reference.state_dict().items():
            place, _, kind = name.rpartition(".")
            if kind.endswith("_bias"):
                kind, suffix = kind.removesuffix("_bias"), "bias"
            elif kind in ("gate_up_proj", "down_proj"):
                tensor, suffix = tensor.transpose(1, 2), "weight"
            elif kind == "sinks":
                suffix = "weight"
            else:
                found[name] = tensor
                continue
            if kind == "gate_up_proj":
                found[f"{place}.gate_proj.{suffix}"] = tensor[:, ::2]
                found[f"{place}.up_proj.{suffix}"] = tensor[:, 1::2]
            else:
                found[f"{place}.{kind}.{suffix}"] = tensor
        return found


def write(folder, reference, experts=F32):
    config, rope = reference.config, reference.config.rope_parameters
    metadata = {
        "expert_count": config.num_local_experts,
        "expert_used_count": config.num_experts_per_tok,
        "expert_feed_forward_length": config.intermediate_size,
        "attention.sliding_window": config.sliding_window,
        "attention.value_length": config.head_dim,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": rope["factor"],
        "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
    }
    return write_gguf(
        folder / "m.gguf",
        Converted(reference),
        "gpt-oss",
        metadata={f"gpt-oss.{key}": value for key, value in metadata.items()},
        pre="gpt-4o",
        names=NAMES,
        stacked=experts,
    )


def rounded(reference, kind):
    """Gives the experts the numbers that are left of them in a file."""
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if name.endswith(("gate_up_proj", "down_proj")):
                values = np.ascontiguousarray(parameter.transpose(1, 2).numpy())
                back = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
                parameter.copy_(torch.from_numpy(back).transpose(1, 2))
    return reference


@pytest.mark.parametrize(
    "changes", [{}, {"tie_word_embeddings": True}, {"num_key_value_heads": 1}, {"attention_bias": False}], ids=str
)
def test_logits_equal_transformers(changes, tmp_path):
    reference = make(**changes)
    assert_equal_logits(reference, load_gguf(ARCHITECTURE, write(tmp_path, reference)))


@pytest.mark.parametrize("kind", ["MXFP4", "Q8_0", "BF16"])
def test_quantized_experts_equal_transformers_on_their_numbers(kind, tmp_path):
    kind = gguf.GGMLQuantizationType[kind]
    reference = make(intermediate_size=64)
    path = write(tmp_path, reference, kind)
    assert_equal_logits(rounded(reference, kind), load_gguf(ARCHITECTURE, path))


def test_it_answers(tmp_path):
    path = write(tmp_path, make(intermediate_size=64), gguf.GGMLQuantizationType.MXFP4)
    with registry.load(path, dtype="bfloat16", device="cpu", kv_cache_memory="4MiB") as llm:
        (output,) = llm.generate(TextGenerationRequest(prompt="hello"), max_new_tokens=5, ignore_eos=True)
        assert len(output.tokens) == 5
        assert llm.tokenizer.eos_token_ids == {len(TOKENS) - 1}


@pytest.mark.parametrize("key", ["expert_count", "expert_used_count", "attention.sliding_window"])
def test_what_is_missing_is_named(key, tmp_path):
    file = open_gguf(write(tmp_path, make()))
    del file.metadata[f"gpt-oss.{key}"]
    with pytest.raises(CorruptCheckpointError, match=rf"lacks 'gpt-oss\.{key}'"):
        config_from_gguf(file)
