"""gpt-oss models for pipezoo. The registry finds `pipezoo_gpt_oss.plugin`; nothing else needs importing."""

__all__: list[str] = []
