"""Granite 4 models for pipezoo. The registry finds `pipezoo_granite.plugin`; nothing else needs importing."""

__all__: list[str] = []
