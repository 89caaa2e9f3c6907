"""Safetensors checkpoints that another program has quantized, as transformers writes them."""

from pipezoo_core.weights.quantized.layers import with_quantized
from pipezoo_core.weights.quantized.rounded import rounding_entries

__all__ = ["rounding_entries", "with_quantized"]
