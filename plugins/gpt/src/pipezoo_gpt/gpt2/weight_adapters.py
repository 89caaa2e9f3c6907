"""From the names in a checkpoint or a GGUF file to those of `GPT2LMHeadModel`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from transformers import PretrainedConfig

from pipezoo_core.errors import UnsupportedCheckpointError
from pipezoo_core.weights import LazyTensor, Weights, divided, renamed_from_gguf, without_redundant

__all__ = ["adapt_gpt2", "adapt_gpt2_gguf"]

_MASK = re.compile(r"transformer\.h\.\d+\.attn\.bias")  # old checkpoints store it
_CONV1D = re.compile(r"transformer\.h\.\d+\.(?:attn|mlp)\.(?:c_attn|c_fc|c_proj)\.weight")
_OF_A_CHECKPOINT = {"wte.weight", "transformer.wte.weight", "lm_head.weight"}
_GGUF_NAMES = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}


def adapt_gpt2(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """Matrices are transposed; those of queries, keys and values lie in one. The first checkpoints have no prefix.

    A LoRA adapter's B, which has the layer's outputs as rows, is not. It comes without an embedding or a head; its
    shape does not tell it apart, because its rank may be a size of the model.

    Raises:
        UnsupportedCheckpointError: the checkpoint is quantized: its rows may be inputs or outputs.
    """
    if isinstance(tensors, Weights) and tensors.is_quantized:
        raise UnsupportedCheckpointError(
            "the checkpoint has quantized tensors of transposed layers (Conv1D)",
            found=next(iter(tensors), "no tensors"),
            allowed="weights in bfloat16, float16 or float32",
            cure="Take the checkpoint before quantization, or a GGUF file of the model.",
        )
    is_checkpoint = not _OF_A_CHECKPOINT.isdisjoint(tensors)
    found: dict[str, LazyTensor] = {}
    for key, tensor in tensors.items():
        name = key if key.startswith(("transformer.", "lm_head.")) else f"transformer.{key}"
        if _MASK.fullmatch(name):
            continue
        is_stored_transposed = is_checkpoint and _CONV1D.fullmatch(name) and len(tensor.shape) == 2
        found[name] = tensor.transposed() if is_stored_transposed else tensor
    return without_redundant(_without_fused(found, config), config, embedding="transformer.wte.weight")


def adapt_gpt2_gguf(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    """Queries, keys and values lie in one matrix; none is transposed."""
    return _without_fused(renamed_from_gguf(tensors, names=_GGUF_NAMES, layers="transformer.h"), config)


def _without_fused(tensors: Mapping[str, LazyTensor], config: PretrainedConfig) -> dict[str, LazyTensor]:
    parts = dict.fromkeys(("q_proj", "k_proj", "v_proj"), config.n_embd)
    found: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        found |= divided(name, tensor, "c_attn", parts) if ".c_attn." in name else {name: tensor}
    return found
