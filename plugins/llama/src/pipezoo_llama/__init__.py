"""Llama models for pipezoo. The registry finds `pipezoo_llama.plugin`; nothing else needs importing."""

__all__: list[str] = []
