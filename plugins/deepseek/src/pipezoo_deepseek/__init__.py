"""DeepSeek models for pipezoo. The registry finds `pipezoo_deepseek.plugin`; nothing else needs importing."""

__all__: list[str] = []
