"""Safetensors checkpoints that another program has quantized, as transformers writes them."""

from pipezoo_core.weights.quantized.layers import with_quantized

__all__ = ["with_quantized"]
