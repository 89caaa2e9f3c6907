"""Checkpoints: safetensors and GGUF, read lazily, loaded strictly."""

from pipezoo_core.weights.base import LazyTensor, Weights, WeightsAdapter
from pipezoo_core.weights.encoding import resolve_encoding, torch_dtype
from pipezoo_core.weights.files import open_weights
from pipezoo_core.weights.gguf import GGUFFile, open_gguf
from pipezoo_core.weights.loading import load_module
from pipezoo_core.weights.safetensors import find_safetensors, open_safetensors

__all__ = [
    "GGUFFile",
    "LazyTensor",
    "Weights",
    "WeightsAdapter",
    "find_safetensors",
    "load_module",
    "open_gguf",
    "open_safetensors",
    "open_weights",
    "resolve_encoding",
    "torch_dtype",
]
