"""Mistral models for pipezoo. The registry finds `pipezoo_mistral.plugin`; nothing else needs importing."""

__all__: list[str] = []
