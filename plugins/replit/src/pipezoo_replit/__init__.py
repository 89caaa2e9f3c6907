"""Replit and MPT models for pipezoo. The registry finds `pipezoo_replit.plugin`; nothing else needs importing."""

__all__: list[str] = []
