"""LFM2 models for pipezoo. The registry finds `pipezoo_lfm2.plugin`; nothing else needs importing."""

__all__: list[str] = []
