"""Gemma models for pipezoo. The registry finds `pipezoo_gemma.plugin`; nothing else needs importing."""

__all__: list[str] = []
