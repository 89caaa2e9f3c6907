"""Nemotron-H models for pipezoo. The registry finds `pipezoo_nemotron.plugin`; nothing else needs importing."""

__all__: list[str] = []
