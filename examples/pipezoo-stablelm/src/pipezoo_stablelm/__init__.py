"""StableLm models for pipezoo. The registry finds `pipezoo_stablelm.plugin`; nothing else needs importing."""

__all__: list[str] = []
