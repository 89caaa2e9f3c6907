"""Checkpoints: safetensors and GGUF, read lazily, loaded strictly."""

from pipezoo_core.weights.base import LazyTensor, Weights, WeightsAdapter, concatenated, divided
from pipezoo_core.weights.encoding import resolve_encoding, torch_dtype
from pipezoo_core.weights.files import open_weights
from pipezoo_core.weights.fused_experts import with_experts_divided, with_experts_unstacked
from pipezoo_core.weights.gguf import GGUFFile, open_gguf
from pipezoo_core.weights.gguf_decoder import SIGMOID, SOFTMAX, GGUFDecoder, model_type_of
from pipezoo_core.weights.gguf_names import (
    as_vector,
    in_halves,
    logarithm_of_rates,
    renamed_from_gguf,
    with_a_channel,
)
from pipezoo_core.weights.keeping import keep_outline, kept_layers
from pipezoo_core.weights.loading import load_module
from pipezoo_core.weights.progress import observed_weights
from pipezoo_core.weights.quantized import rounding_entries, with_quantized
from pipezoo_core.weights.redundant import HEAD, without_further_layers, without_redundant
from pipezoo_core.weights.safetensors import find_safetensors, open_safetensors, safetensors_names
from pipezoo_core.weights.safetensors_writer import WrittenTensor, write_safetensors
from pipezoo_core.weights.text_part import of_text_part

__all__ = [
    "HEAD",
    "SIGMOID",
    "SOFTMAX",
    "GGUFDecoder",
    "GGUFFile",
    "LazyTensor",
    "Weights",
    "WeightsAdapter",
    "WrittenTensor",
    "as_vector",
    "concatenated",
    "divided",
    "find_safetensors",
    "in_halves",
    "keep_outline",
    "kept_layers",
    "load_module",
    "logarithm_of_rates",
    "model_type_of",
    "observed_weights",
    "of_text_part",
    "open_gguf",
    "open_safetensors",
    "open_weights",
    "renamed_from_gguf",
    "resolve_encoding",
    "rounding_entries",
    "safetensors_names",
    "torch_dtype",
    "with_a_channel",
    "with_experts_divided",
    "with_experts_unstacked",
    "with_quantized",
    "without_further_layers",
    "without_redundant",
    "write_safetensors",
]
