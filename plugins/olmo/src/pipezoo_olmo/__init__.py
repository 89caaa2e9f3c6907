"""OLMo models for pipezoo. The registry finds `pipezoo_olmo.plugin`; nothing else needs importing."""

__all__: list[str] = []
