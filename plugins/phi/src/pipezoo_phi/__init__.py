"""Phi models for pipezoo. The registry finds `pipezoo_phi.plugin`; nothing else needs importing."""

__all__: list[str] = []
